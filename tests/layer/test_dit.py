"""The cache in a real DiTTransformer2DModel: right, removable, and never silently stale."""

import pytest
import torch
from models import draw, tiny_dit, tiny_dit_pipeline

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    FullSteps,
    StepMask,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    remove_foca_cache,
    schemes,
)
from foca_dit.adapters.hooks import find_hook
from foca_dit.history import FeatureHistories
from foca_dit.stats import CacheStats

GRANULARITIES = ("module", "stack", "output")


class LiteralFoCa:
    """The paper's recursion around one module, in float64: an oracle that shares no code with ours.

    Between full steps F_k, F_{k-1} are the last two values used; D_a is the slope of the anchors.
    """

    def __init__(self, module, full_steps):
        self.run, self.full_steps, self.step = module.forward, full_steps, 0
        self.anchors, self.used = [], []
        module.forward = self.forward

    def forward(self, *args, **kwargs):
        step, self.step = self.step, self.step + 1
        if step in self.full_steps:
            value = self.run(*args, **kwargs)
            self.anchors.append((step, value.double()))
            self.used.append(value.double())
            return value
        (before, f_before), (last, f_last) = self.anchors[-2:]
        d_anchor = (f_last - f_before) / (last - before)
        f_k, f_km1 = self.used[-1], self.used[-2]
        d_k = f_k - f_km1
        predicted = 4 / 3 * f_k - 1 / 3 * f_km1 + 2 / 3 * d_k
        d_next = 3 / 2 * predicted - 2 * f_k + 1 / 2 * f_km1
        corrected = f_k + (d_anchor + d_next) / 2
        self.used.append(corrected)
        return corrected.float()


def test_fused_cache_equals_the_papers_recursion_module_by_module():
    full_steps = (0, 1, 2, 6, 10)
    literal = tiny_dit()
    for block in literal.transformer_blocks:
        for name in ("attn1", "ff"):
            LiteralFoCa(block.get_submodule(name), full_steps)
    expected = draw(literal)
    model = tiny_dit()
    config = FoCaCacheConfig(preset="paper", cache_interval=4)
    apply_foca_cache(model, config)
    actual = draw(model)
    assert foca_cache_stats(model)["collapsed_skips"] == 12 - len(full_steps)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
    assert not torch.allclose(actual, draw(tiny_dit()), atol=1e-3)  # it did forecast


@pytest.mark.parametrize("scheme", ["foca", "taylorseer", "reuse"])
def test_collapsed_skip_equals_skipping_module_by_module(scheme):
    images = []
    for collapse in (True, False):
        model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(scheme=scheme, cache_interval=4))
        find_hook(model).collapse = collapse
        images.append(draw(model))
        stats = foca_cache_stats(model)
        assert stats["skipped_steps"] == 7
        assert stats["collapsed_skips"] == (7 if collapse else 0)
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_interval_one_changes_nothing(granularity):
    model = tiny_dit()
    expected = draw(model)
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=1, granularity=granularity))
    assert torch.equal(draw(model), expected)
    assert foca_cache_stats(model)["skipped_steps"] == 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_removal_leaves_the_model_as_it_was(granularity):
    model = tiny_dit()
    expected, before = draw(model), _attributes(model)
    apply_foca_cache(model, FoCaCacheConfig(granularity=granularity))
    assert not torch.equal(draw(model), expected)
    remove_foca_cache(model)
    assert torch.equal(draw(model), expected)
    assert _attributes(model) == before
    with pytest.raises(ValueError, match="has no cache"):
        foca_cache_stats(model)


def _attributes(model):
    return {(name, key) for name, module in model.named_modules() for key in vars(module)}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_every_generation_starts_afresh(granularity, guidance_scale):
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity=granularity))
    first = draw(model, guidance_scale=guidance_scale)
    for change in ({"seed": 1}, {"batch": 3}, {"steps": 9}):
        fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity=granularity))
        expected = draw(fresh, **change, guidance_scale=guidance_scale)
        actual = draw(model, **change, guidance_scale=guidance_scale)
        assert torch.equal(actual, expected), change
    assert torch.equal(draw(model, guidance_scale=guidance_scale), first)


@torch.no_grad()
def _calls(model, timesteps, x, labels=None):
    labels = torch.zeros(len(x), dtype=torch.long) if labels is None else labels
    return [
        model(x, timestep=torch.full((len(x),), t), class_labels=labels).sample for t in timesteps
    ]


@pytest.mark.parametrize("given_up_after", [1, 2, 4, 6])
@pytest.mark.parametrize("restart_at", [1000.0, 500.0])
@pytest.mark.parametrize("same_buffer", [False, True])
def test_a_generation_given_up_is_never_continued(given_up_after, restart_at, same_buffer):
    """Also when the next one begins further on, as img2img does, and in the same memory."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    old, new = torch.randn(2, 2, 4, 8, 8).unbind()
    _calls(model, [1000.0 - 20 * i for i in range(given_up_after)], old)
    if same_buffer:
        new = old.copy_(new)
    timesteps = [restart_at - 20 * i for i in range(8)]
    actual = _calls(model, timesteps, new)
    fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    expected = _calls(fresh, timesteps, new)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_two_calls_a_step_are_two_branches(granularity):
    """Guidance as two calls per step gives what one batch of two gives."""
    config = FoCaCacheConfig(granularity=granularity)
    joint, split = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    x, labels = torch.randn(1, 4, 8, 8), torch.tensor([3, 10])
    for step in range(9):
        t = 1000.0 - 100 * step
        both = _calls(joint, [t], torch.cat([x, x]), labels)[0]
        one, two = (_calls(split, [t], x, label[None])[0] for label in labels)
        torch.testing.assert_close(torch.cat([one, two]), both, rtol=1e-5, atol=1e-5)
        x = x - 0.05 * both[:1]
    assert foca_cache_stats(split)["skipped_steps"] == 2 * foca_cache_stats(joint)["skipped_steps"]
    assert foca_cache_stats(split)["restarts"] == {}


def test_a_failed_step_can_be_run_again():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=3))
    fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=3))
    x = torch.randn(2, 4, 8, 8)
    timesteps = [1000.0 - 50 * i for i in range(8)]
    expected = _calls(fresh, timesteps, x)
    block = model.transformer_blocks[1]
    for t, theirs in zip(timesteps, expected, strict=True):
        block.norm3.register_forward_pre_hook(_fail, prepend=True)
        if not find_hook(model).state.branches or _due(model):
            with pytest.raises(FloatingPointError):
                _calls(model, [t], x)
        block.norm3._forward_pre_hooks.clear()
        assert torch.equal(_calls(model, [t], x)[0], theirs)


def _fail(module, args):
    raise FloatingPointError("in the middle of a step")


def _due(model):
    (branch,) = find_hook(model).state.branches.values()
    histories = branch.histories
    histories.begin(branch.trajectory.step + 1, branch.trajectory.tau)
    return histories.due(0)


def test_a_failed_step_that_is_not_repeated_costs_a_full_step_and_nothing_else():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=3))
    x = torch.randn(2, 4, 8, 8)
    _calls(model, [1000.0, 950.0, 900.0], x)
    _calls(model, [850.0, 800.0], x)
    handle = model.transformer_blocks[1].norm3.register_forward_pre_hook(_fail)
    with pytest.raises(FloatingPointError):
        _calls(model, [750.0], x)
    handle.remove()
    _calls(model, [700.0], x)
    (branch,) = find_hook(model).state.branches.values()
    assert {anchors[-1] for anchors in branch.histories.anchors} == {6}


def test_mask_caches_only_some_blocks():
    """Features under a mask of True are computed at every step; the result equals their literal."""
    mask = torch.ones(12, 6, dtype=torch.bool).numpy()
    mask[3:, :2] = False  # block 0: forecast from step 3 on, never computed again
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(schedule=StepMask(mask)))
    draw(model)
    stats = foca_cache_stats(model)
    assert (stats["full_steps"], stats["mixed_steps"], stats["skipped_steps"]) == (3, 9, 0)
    assert stats["forecasts"] == 2 * 9
    assert stats["commits"] == 6 * 3 + 4 * 9


def test_full_steps_of_ones_own():
    config = FoCaCacheConfig(schedule=FullSteps([0, 1, 3, 6]))
    model = apply_foca_cache(tiny_dit(), config)
    draw(model, steps=10)
    stats = foca_cache_stats(model)
    assert (stats["full_steps"], stats["skipped_steps"]) == (4, 6)


def test_requests_interleaved_on_one_model():
    """Two requests with a state each, call by call in turn, equal two runs of their own."""
    config = FoCaCacheConfig(cache_interval=4)
    model = apply_foca_cache(tiny_dit(), config)
    samples = torch.randn(2, 2, 4, 8, 8).unbind()
    states = [CacheState(config) for _ in samples]
    timesteps = [1000.0 - 50 * i for i in range(10)]
    actual = [[], []]
    for t in timesteps:
        for x, state, outputs in zip(samples, states, actual, strict=True):
            with cache_scope(model, state, branch="cond"):
                outputs += _calls(model, [t], x)
    for x, outputs in zip(samples, actual, strict=True):
        fresh = apply_foca_cache(tiny_dit(), config)
        for ours, theirs in zip(outputs, _calls(fresh, timesteps, x), strict=True):
            assert torch.equal(ours, theirs)
    assert foca_cache_stats(model)["full_steps"] == 0  # the model's own state saw none of it
    assert foca_cache_stats(model, states[0])["skipped_steps"] == 6


def test_scope_without_a_state_is_lossless():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4))
    x = torch.randn(1, 4, 8, 8)
    timesteps = [1000.0 - 50 * i for i in range(6)]
    expected = _calls(tiny_dit(), timesteps, x)
    with cache_scope(model, None):
        actual = _calls(model, timesteps, x)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert foca_cache_stats(model)["nbytes"] == 0


def test_a_state_of_ones_own_refuses_a_step_out_of_order():
    config = FoCaCacheConfig()
    model = apply_foca_cache(tiny_dit(), config)
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    with cache_scope(model, state):
        _calls(model, [900.0, 800.0, 700.0, 600.0], x)
        held = _tensors(state)
        with pytest.raises(RuntimeError, match=r"timestep 800 .* out of order.*state\.reset\(\)"):
            _calls(model, [800.0], x)
        assert all(torch.equal(a, b) for a, b in zip(held, _tensors(state), strict=True))
        state.reset()
        assert state.nbytes == 0
        _calls(model, [800.0], x)


def _tensors(state):
    slots = [slots for b in state.branches.values() for slots in b.histories._slots]
    return [slot.clone() for feature in slots for slot in feature]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_bytes_are_counted(granularity):
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity=granularity))
    draw(model, batch=2)
    numbers = {"module": 6 * 2 * 16 * 32, "stack": 2 * 16 * 32, "output": 2 * 4 * 8 * 8}
    assert foca_cache_stats(model)["nbytes"] == 3 * 4 * numbers[granularity]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_half_precision_models_and_histories(dtype, granularity):
    model = tiny_dit().to(dtype)
    x = torch.randn(2, 4, 8, 8, dtype=dtype)
    timesteps = [1000.0 - 50 * i for i in range(8)]
    exact = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity=granularity))
    expected = _calls(exact, timesteps, x.float())
    for history_dtype in (None, torch.float32):
        config = FoCaCacheConfig(granularity=granularity, history_dtype=history_dtype)
        apply_foca_cache(model, config)
        outputs = _calls(model, timesteps, x)
        remove_foca_cache(model)
        for ours, theirs in zip(outputs, expected, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.float(), theirs, rtol=0.1, atol=0.1)


def test_gradients_run_uncached_and_say_so():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig())
    x = torch.randn(1, 4, 8, 8)
    arguments = {"timestep": torch.tensor([500.0]), "class_labels": torch.tensor([1])}
    with pytest.warns(UserWarning, match=r"runs uncached: gradients are enabled"):
        model(x, **arguments).sample.sum().backward()
    model(x, **arguments)
    (reason,) = foca_cache_stats(model)["bypasses"]
    assert foca_cache_stats(model)["bypasses"][reason] == 2


def test_lora_like_modulation_is_evaluated_whole():
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1.5

    images = []
    for collapse in (True, False):
        model = tiny_dit()
        for block in model.transformer_blocks:
            block.norm1.linear.__class__ = Adapted
        apply_foca_cache(model, FoCaCacheConfig(cache_interval=4))
        find_hook(model).collapse = collapse
        images.append(draw(model))
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_pipeline(granularity, guidance_scale):
    def generate(pipeline, seed=0):
        return pipeline(
            class_labels=[1, 2],
            guidance_scale=guidance_scale,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images

    plain, pipeline = tiny_dit_pipeline(), tiny_dit_pipeline()
    apply_foca_cache(pipeline, FoCaCacheConfig(granularity=granularity, time="log_snr"))
    first = generate(pipeline)
    stats = foca_cache_stats(pipeline)
    # A random model jumps at the first step of DDIM, which the cache takes for a new generation.
    assert stats["skipped_steps"] >= 3
    assert stats["full_steps"] + stats["skipped_steps"] == 10
    assert (first != generate(plain)).any()
    generate(pipeline, seed=1)
    assert (generate(pipeline) == first).all()
    remove_foca_cache(pipeline)
    assert (generate(pipeline) == generate(plain)).all()


def test_the_preset_scheme_is_the_documented_one():
    settings = FoCaCacheConfig().resolve()
    assert settings.scheme == schemes.FoCa(reading="rolling", feedback=0.5)


def test_guidance_switched_off_part_way():
    """Fewer calls a step may also be a generation begun anew: both start with full steps."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    x = torch.randn(1, 4, 8, 8)
    timesteps = [1000.0 - 20 * i for i in range(14)]
    for t in timesteps[:5]:
        _calls(model, [t, t], x)
    _calls(model, timesteps[5:6], x)
    actual = _calls(model, timesteps[6:], x)
    fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    expected = _calls(fresh, timesteps[6:], x)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)
    (reason,) = foca_cache_stats(model)["restarts"]
    assert "fewer calls" in reason


def test_a_time_variable_that_stands_still_is_refused():
    config = FoCaCacheConfig(time=lambda timestep: 1.0)
    model = apply_foca_cache(tiny_dit(), config)
    x = torch.randn(1, 4, 8, 8)
    _calls(model, [1000.0], x)
    with pytest.raises(ValueError, match="strictly monotone times"):
        _calls(model, [900.0], x)


def test_a_feature_that_changes_shape_begins_a_new_history():
    stats = CacheStats()
    histories = FeatureHistories(FoCaCacheConfig().resolve(), 1, stats)
    for step, shape in enumerate([(2, 3), (2, 3), (4, 3)]):
        histories.begin(step, range(step + 1))
        histories.commit(0, torch.ones(shape))
    assert histories.anchors == [(2,)]
    assert histories.nbytes == 3 * 4 * 12


def test_two_calls_a_step_in_one_branch_are_refused():
    config = FoCaCacheConfig()
    model = apply_foca_cache(tiny_dit(), config)
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    with cache_scope(model, state):
        _calls(model, [900.0], x)
        with pytest.raises(RuntimeError, match=r"two calls a step are two branches"):
            _calls(model, [900.0], x)


def test_another_prompt_from_the_same_noise_after_one_step():
    """Counted as one more branch at first; nothing is forecast before that is cleared up."""
    config = FoCaCacheConfig(granularity="stack", disable_cache_before_step=1)
    model, fresh = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    x, timesteps = torch.randn(1, 4, 8, 8), [1000.0 - 20 * i for i in range(3)]
    _calls(model, timesteps[:1], x, torch.tensor([1]))
    actual = _calls(model, timesteps, x, torch.tensor([2]))
    expected = _calls(tiny_dit(), timesteps, x, torch.tensor([2]))
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)  # all full: step 0, 1, and 2 that starts anew
    _calls(fresh, timesteps, x)
    assert foca_cache_stats(fresh)["skipped_steps"] == 1


def test_a_batch_at_different_timesteps_runs_uncached():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig())
    x, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    with torch.no_grad(), pytest.warns(UserWarning, match="one timestep for the whole batch"):
        model(x, timestep=torch.tensor([900.0, 500.0]), class_labels=labels)


def test_a_failing_time_function_leaves_the_trajectory_whole():
    broken = []

    def time(timestep):
        if broken:
            raise ArithmeticError("no time")
        return -timestep

    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(time=time))
    x = torch.randn(1, 4, 8, 8)
    _calls(model, [900.0, 800.0], x)
    broken.append(True)
    with pytest.raises(ArithmeticError):
        _calls(model, [700.0], x)
    broken.clear()
    _calls(model, [700.0, 600.0], x)
    assert foca_cache_stats(model)["skipped_steps"] == 1
