"""SSIM, Frechet distance and Inception score against what is known of them."""

import math

import pytest
import torch

from foca_dit.evaluation.metrics import (
    accuracy,
    frechet_distance,
    gaussian,
    inception_score,
    ssim,
    together,
)


@pytest.fixture
def images():
    return torch.rand(3, 2, 17, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_identical_images_have_ssim_1(images):
    assert ssim(images, images) == pytest.approx(1)
    assert ssim(images, images.flip(3)) < 0.5


@pytest.mark.parametrize(("a", "b"), [(0.25, 0.5), (-1.0, 1.0), (0.0, 0.0)])
def test_constant_images_leave_the_luminance_term(a, b):
    c1 = (0.01 * 2) ** 2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    x = torch.full((1, 1, 12, 12), a)
    assert ssim(x, torch.full_like(x, b)) == pytest.approx(expected)


def test_ssim_is_the_mean_over_windows(images):
    reference = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    line = torch.tensor([math.exp(-(i**2) / (2 * 1.5**2)) for i in range(-5, 6)]).double()
    window = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for x, y in zip(images.flatten(0, 1).double(), reference.flatten(0, 1).double(), strict=True):
        for top in range(17 - 10):
            for left in range(14 - 10):
                a, b = (v[top : top + 11, left : left + 11] for v in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                cov = (window * (a - mean_a) * (b - mean_b)).sum()
                top_line = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
                values.append(top_line / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    assert ssim(images, reference) == pytest.approx(float(torch.stack(values).mean()))


def test_ssim_refuses_what_it_cannot_compare(images):
    with pytest.raises(ValueError, match=r"argument 'images'.*expected.*got"):
        ssim(images, images[:1])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(images[..., :10], images[..., :10])


def test_frechet_distance_of_gaussians_that_commute():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    m1, m2 = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    s1, s2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    expected = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    got = frechet_distance(m1, torch.diag(s1**2), m2, torch.diag(s2**2))
    assert got == pytest.approx(expected)


def test_frechet_distance_of_gaussians_that_do_not_commute():
    """In two dimensions tr (C1 C2)^(1/2) = sqrt(tr(C1 C2) + 2 sqrt(det C1 det C2))."""
    c1 = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
    c2 = torch.tensor([[1.0, -0.4], [-0.4, 3.0]], dtype=torch.float64)
    root = torch.sqrt((c1 @ c2).trace() + 2 * torch.sqrt(c1.det() * c2.det()))
    expected = float(c1.trace() + c2.trace() - 2 * root)
    zero = torch.zeros(2)
    assert frechet_distance(zero, c1, zero, c2) == pytest.approx(expected)
    assert frechet_distance(zero, c1, zero, c1) == pytest.approx(0, abs=1e-12)


def test_gaussian_is_numpys():
    import numpy as np

    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    mean, cov = gaussian(features)
    np.testing.assert_allclose(mean, features.double().mean(0))
    np.testing.assert_allclose(cov, np.cov(features.double().numpy(), rowvar=False))
    with pytest.raises(ValueError, match="n at least 2"):
        gaussian(features[:1])


def test_moments_of_parts_make_those_of_the_whole():
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5)
    parts = [(len(part), *gaussian(part)) for part in features.split([7, 21, 12])]
    count, mean, cov = together(parts)
    assert count == 40
    torch.testing.assert_close((mean, cov), gaussian(features), rtol=1e-12, atol=1e-12)


def test_inception_score_is_between_1_and_the_number_of_classes():
    assert inception_score(torch.zeros(8, 10)) == pytest.approx(1)
    sure = 1e3 * torch.eye(10).repeat(3, 1)
    assert inception_score(sure) == pytest.approx(10)
    assert inception_score(sure[:1].repeat(5, 1)) == pytest.approx(1)  # sure, but all alike
    mixed = inception_score(torch.randn(50, 10, generator=torch.Generator().manual_seed(0)))
    assert 1 < mixed < 10


def test_accuracy():
    logits = torch.eye(3).repeat(2, 1)
    assert accuracy(logits, torch.tensor([0, 1, 2, 0, 2, 1])) == pytest.approx(4 / 6)
