"""What a cache holds: what its features weigh, and no more after a hundred generations."""

import gc
import weakref

import pytest
import torch
from case import WIDTH
from cases import BY_NAME
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache
from foca_dit.trajectory import FINGERPRINT_SIZE

CONFIG = FoCaCacheConfig(preset="paper", cache_interval=4)
WATCHED = ("flux", "hunyuan-video-i2v-token-replace", "flux2", "wan", "cogvideox")
RUN_LONG = ("flux", "wan")


class Allocated(TorchDispatchMode):
    """Counts the bytes of the storages that live, among those made inside it."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self._known or size == 0:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key, size):
        self._known.discard(key)
        self.now -= size


def _live_tensors():
    gc.collect()
    return sum(1 for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))


@pytest.mark.supports("no leak")
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("name", RUN_LONG)
def test_a_hundred_generations_leak_nothing(name, granularity):
    case = BY_NAME[name]
    model = apply_foca_cache(case.model(), FoCaCacheConfig(preset="paper", granularity=granularity))
    before = _live_tensors()
    case.draw(model, steps=5, batch=1)
    held, nbytes = _live_tensors(), foca_cache_stats(model)["nbytes"]
    for seed in range(100):
        case.draw(model, steps=5, batch=1, seed=seed)
    assert foca_cache_stats(model)["nbytes"] == nbytes
    assert _live_tensors() == held
    remove_foca_cache(model)
    assert _live_tensors() == before


@pytest.mark.parametrize("name", WATCHED)
def test_peak_on_top_of_the_uncached_run(name):
    """The histories plus 5 %; where sums over features are kept, the sums of a full step, too."""
    case = BY_NAME[name]
    model = case.model()
    with Allocated() as uncached:
        case.draw(model, steps=6)
    apply_foca_cache(model, CONFIG)
    with Allocated() as cached:
        case.draw(model, steps=6)
    stream = 2 * case.tokens * WIDTH * 4
    histories, sums = foca_cache_stats(model)["nbytes"], case.slots * stream
    assert histories == (case.slots or case.features) * 3 * stream
    fingerprints = 2 * 4 * FINGERPRINT_SIZE  # of the sample: large only beside a model this small
    on_top = cached.peak - uncached.peak
    assert 0.9 * histories < on_top < 1.05 * histories + sums + fingerprints
