"""`cache_scope`: whose calls run on which state, in tasks, threads and whole pipelines."""

import asyncio
import contextlib
import threading

import pytest
import torch
from models import draw_flux, flux_prompt, tiny_dit, tiny_flux, tiny_flux_pipeline

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
)
from foca_dit.adapters.hooks import find_hook

CONFIG = FoCaCacheConfig(cache_interval=3)
TIMESTEPS = [900.0 - 75.0 * step for step in range(12)]
FULL, SKIPPED = 6, 6


def _noise(seed):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _step(model, x, t, label=1):
    timestep = torch.full((len(x),), t)
    velocity = model(x, timestep=timestep, class_labels=torch.tensor([label])).sample
    return x - velocity[:, : x.shape[1]] / len(TIMESTEPS)


def _alone(seed):
    model, x = apply_foca_cache(tiny_dit(), CONFIG), _noise(seed)
    with cache_scope(model, CacheState(CONFIG)):
        for t in TIMESTEPS:
            x = _step(model, x, t)
    return x


@pytest.mark.parametrize("where", ["in the loop", "in a thread"])
def test_tasks_have_scopes_of_their_own(where):
    model = apply_foca_cache(tiny_dit(), CONFIG)
    states, threads = [CacheState(CONFIG), CacheState(CONFIG)], set()

    def call(x, t):
        threads.add(threading.get_ident())
        return _step(model, x, t)

    async def request(seed):
        x = _noise(seed)
        with cache_scope(model, states[seed]):
            for t in TIMESTEPS:
                if where == "in the loop":
                    x = call(x, t)
                    await asyncio.sleep(0)
                else:
                    x = await asyncio.to_thread(call, x, t)
        return x

    async def both():
        return await asyncio.gather(request(0), request(1))

    images = asyncio.run(both())
    assert (threading.get_ident() in threads) == (where == "in the loop")
    for seed, image in enumerate(images):
        assert torch.equal(image, _alone(seed))
        assert (states[seed].stats.full_steps, states[seed].stats.skipped_steps) == (FULL, SKIPPED)
    assert foca_cache_stats(model)["full_steps"] == 0


def test_scopes_are_nested_and_left_when_an_exception_leaves_them():
    model = apply_foca_cache(tiny_dit(), CONFIG)
    outer, inner = CacheState(CONFIG), CacheState(CONFIG)
    with cache_scope(model, outer):
        with contextlib.suppress(KeyError), cache_scope(model, inner):
            _step(model, _noise(0), 900.0)
            raise KeyError
        _step(model, _noise(0), 900.0)
    _step(model, _noise(0), 900.0)
    counts = [outer.stats.full_steps, inner.stats.full_steps, foca_cache_stats(model)["full_steps"]]
    assert counts == [1, 1, 1]


def test_a_scope_can_be_left_in_another_thread():
    model = apply_foca_cache(tiny_dit(), CONFIG)

    def generator():
        with cache_scope(model, CacheState(CONFIG)):
            yield

    opened = generator()
    next(opened)
    assert find_hook(model).scope is not None
    thread = threading.Thread(target=opened.close)
    thread.start()
    thread.join()
    assert find_hook(model).scope is None
    with cache_scope(model, state := CacheState(CONFIG)):
        _step(model, _noise(0), 900.0)
    assert state.stats.full_steps == 1


def test_scopes_of_two_models_do_not_mind_each_other():
    first, second = (apply_foca_cache(tiny_dit(), CONFIG) for _ in range(2))
    states = CacheState(CONFIG), CacheState(CONFIG)

    def opened(model, state):
        with cache_scope(model, state):
            yield

    a, b = opened(first, states[0]), opened(second, states[1])
    next(a)
    next(b)
    a.close()
    assert find_hook(first).scope is None
    assert find_hook(second).scope.state is states[1]
    b.close()
    assert find_hook(first).scope is find_hook(second).scope is None


def test_a_pipeline_that_names_its_branches_runs_inside_one_scope():
    given = flux_prompt()
    given |= {f"negative_{name}": value for name, value in flux_prompt(1).items()}
    given |= {"true_cfg_scale": 3.0, "num_inference_steps": 8, "height": 32, "width": 32}

    def images(pipeline):
        generator = torch.Generator().manual_seed(0)
        return pipeline(**given, generator=generator, output_type="latent").images

    pipeline, state = tiny_flux_pipeline(), CacheState(CONFIG)
    apply_foca_cache(pipeline, CONFIG)
    expected = images(pipeline)
    with cache_scope(pipeline, state):
        assert torch.equal(images(pipeline), expected)
    assert sorted(state.branches) == ["default, cond", "default, uncond"]
    assert state.stats.skipped_steps == foca_cache_stats(pipeline)["skipped_steps"] > 0


def test_a_step_whose_second_branch_failed_is_called_again():
    def run(fails):
        model, x = apply_foca_cache(tiny_dit(), CONFIG), _noise(0)
        state = CacheState(CONFIG)
        for step, t in enumerate(TIMESTEPS):
            for again in (True, False) if step in fails else (False,):
                parts = []
                for branch, label in (("cond", 1), ("uncond", 10)):
                    handle = None
                    if again and branch == "uncond":
                        handle = model.proj_out_2.register_forward_pre_hook(_fail)
                    try:
                        with cache_scope(model, state, branch=branch):
                            parts.append(_step(model, x, t, label))
                    except MemoryError:
                        pass
                    finally:
                        if handle is not None:
                            handle.remove()
            x = 2 * parts[0] - parts[1]
        return x, state

    image, state = run(fails=())
    tried, its = run(fails=(1, 3, 4, 8))
    assert torch.equal(tried, image)
    assert dict(its.stats.restarts) == {}
    assert its.stats.skipped_steps > state.stats.skipped_steps > 0


def _fail(*_):
    raise MemoryError


def test_two_calls_a_step_in_one_branch_are_still_refused():
    model = apply_foca_cache(tiny_dit(), CONFIG)
    with cache_scope(model, CacheState(CONFIG)):
        _step(model, _noise(0), 900.0)
        with pytest.raises(RuntimeError, match="two calls a step are two branches"):
            _step(model, _noise(0), 900.0)


def test_a_subclass_that_passes_on_whatever_it_is_given_is_cached():
    model = tiny_flux()

    class Logged(type(model)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    expected = draw_flux(apply_foca_cache(tiny_flux(), CONFIG))
    model.__class__ = Logged
    assert torch.equal(draw_flux(apply_foca_cache(model, CONFIG)), expected)
    assert foca_cache_stats(model)["skipped_steps"] > 0
