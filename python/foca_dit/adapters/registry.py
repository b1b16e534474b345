"""How a hook gets around a module's `forward`, and off again without a trace.

Models of diffusers get it through diffusers' own registry, so that it lives with their other hooks
(offloading, casting, `cache_context`). Any other model is served without diffusers.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

HOOK_NAME = "foca_cache"
_PLAIN = "_foca_cache_hook"
_BELOW = "_old_forward"  # where accelerate's hook keeps the forward that it found

# diffusers' own hooks that change what a block or a module of it returns, by the module of
# diffusers.hooks that defines them (guiders give them names of their own).
REPLACING = {
    "first_block_cache": "FirstBlockCache",
    "faster_cache": "FasterCache",
    "layer_skip": "layer skip",
    "mag_cache": "MagCache",
    "pyramid_attention_broadcast": "PyramidAttentionBroadcast",
    "sea_cache": "SeaCache",
    "smoothed_energy_guidance_utils": "smoothed energy guidance",
    "taylorseer_cache": "TaylorSeerCache",
}


# Packages whose hooks move, cast, shard, log or count.
_HARMLESS = ("torch", "torchao", "diffusers", "accelerate", "peft", "foca_dit")


class Hook:
    """What both registries expect of a hook; `new_forward` is called in the place of `forward`.

    Attributes:
        fn_ref: has the `original_forward`, once the hook is registered.
        installed: the `forward` that stands for the module and the hook.
        contexts: diffusers' StateManager, through which it tells us of its `cache_context`.
    """

    _is_stateful = False
    fn_ref: Any
    installed: Any = None
    contexts: Any = None

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def deinitalize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        return output

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.setdefault(id(self), type(self).__new__(type(self)))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce__(self) -> Any:
        raise TypeError(
            "foca_dit: a model with a cache cannot be pickled: call remove_foca_cache(model) "
            "first, or save its weights alone (save_pretrained, state_dict)"
        )


def is_of_diffusers(model: torch.nn.Module) -> bool:
    """Whether a model's class is one of diffusers', or derives from one."""
    return any(base.__module__.partition(".")[0] == "diffusers" for base in type(model).__mro__)


def register(root: torch.nn.Module, hooks: list[tuple[torch.nn.Module, Hook]]) -> None:
    """Puts hooks on modules of the model `root`, at most one on each: all or none."""
    try:
        _register(root, hooks)
    except BaseException:
        for module, hook in hooks:
            if find(module) in (hook, None):  # not that of a model which shares the module
                _remove_from(module)
        raise


def _register(root: torch.nn.Module, hooks: list[tuple[torch.nn.Module, Hook]]) -> None:
    if not is_of_diffusers(root):
        for module, hook in hooks:
            _register_plainly(module, hook)
        return
    from diffusers.hooks import HookRegistry

    for module, hook in hooks:
        if hook._is_stateful:
            hook.contexts = _contexts()
        registry = HookRegistry.check_if_exists_or_initialize(module)
        splitting = {} if module is root else _take_off(registry, "context_parallel")
        with _below_accelerate(module, alone=not registry.hooks):
            registry.register_hook(hook, HOOK_NAME)
            hook.installed = module.forward
            for name, other in splitting.items():
                registry.register_hook(other, name)
            forward: Any = module.forward
            forward.__deepcopy__ = functools.partial(_copied_forward, module)
    HookRegistry.check_if_exists_or_initialize(root)._child_registries_cache = None


@contextmanager
def _below_accelerate(module: torch.nn.Module, alone: bool) -> Iterator[None]:
    """Lets a hook be put on inside of accelerate's (CPU offload), if `alone`.

    That one restores the `forward` it found when it is taken off, which a pipeline does after every
    generation: a hook outside of it would be lost. Other hooks of diffusers stand in a chain with
    ours, which accelerate's must not cut in two.
    """
    if not (alone and hasattr(module, "_hf_hook") and _BELOW in module.__dict__):
        yield
        return
    outer, module.forward = module.forward, module.__dict__[_BELOW]
    try:
        yield
    finally:
        module.__dict__[_BELOW], module.forward = module.forward, outer


def _take_off(registry: Any, source: str) -> dict[str, Any]:
    """Takes off the hooks that a module of diffusers.hooks defines; returns them by name.

    Context parallelism splits the tokens where the blocks begin: inside a block's hooks ours must
    come after it, to see one rank's tokens going in as it does coming out.
    """
    taken = {
        name: registry.hooks[name]
        for name in registry._hook_order
        if type(registry.hooks[name]).__module__ == f"diffusers.hooks.{source}"
    }
    for name in taken:
        registry.remove_hook(name, recurse=False)
    return taken


def find(module: torch.nn.Module) -> Hook | None:
    """Our hook on a module, or None."""
    registry = module.__dict__.get("_diffusers_hook")
    hook = module.__dict__.get(_PLAIN) if registry is None else registry.get_hook(HOOK_NAME)
    return hook if isinstance(hook, Hook) else None


def remove(root: torch.nn.Module) -> None:
    """Takes all our hooks out of a model, and the registries that stand empty then."""
    for module in root.modules():
        _remove_from(module)


def _remove_from(module: torch.nn.Module) -> None:
    """Takes our hook off one module, and its registry if that stands empty then."""
    if (hook := module.__dict__.pop(_PLAIN, None)) is not None:
        is_below = module.__dict__.get(_BELOW) is hook.installed
        setattr(module, _BELOW if is_below else "forward", hook.fn_ref.original_forward)
        _unshadow(module)
    registry: Any = module.__dict__.get("_diffusers_hook")
    if registry is None:
        return
    if (hook := registry.hooks.get(HOOK_NAME)) is not None:
        if module.__dict__.get(_BELOW) is hook.installed:
            index = registry._hook_order.index(HOOK_NAME)
            del registry.hooks[HOOK_NAME], registry._hook_order[index], registry._fn_refs[index]
            setattr(module, _BELOW, hook.fn_ref.original_forward)
        else:
            registry.remove_hook(HOOK_NAME, recurse=False)
    registry._child_registries_cache = None
    if not registry.hooks:
        del module._diffusers_hook
        _unshadow(module)


def move(root: torch.nn.Module, old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Moves our hook to the module that now stands in the place of another (LoRA loaded)."""
    hook = find(old)
    assert hook is not None
    _remove_from(old)
    register(root, [(new, hook)])


def replaced_by(module: torch.nn.Module) -> str | None:
    """What else replaces this module's output: the name of a technique of diffusers, or None."""
    return next((REPLACING[n] for hook in _others(module) if (n := _technique(hook))), None)


def disturbed_by(module: torch.nn.Module) -> str | None:
    """What else in diffusers' registry replaces this module's output, or may; or None."""
    for hook in _others(module):
        if name := _technique(hook):
            return f"{REPLACING[name]} of diffusers replaces what the blocks compute"
        if not _is_harmless(type(hook)):
            return f"the hook {type(hook).__name__} may change what the blocks compute"
    return None


def _others(module: torch.nn.Module) -> Iterable[Any]:
    """The hooks beside ours."""
    registry = module.__dict__.get("_diffusers_hook")
    if registry is None:
        return ()
    return [hook for hook in registry.hooks.values() if not isinstance(hook, Hook)]


def _technique(hook: Any) -> str:
    """The module of diffusers that a hook which replaces outputs comes from; "": another hook."""
    package, _, name = type(hook).__module__.rpartition(".")
    return name if package == "diffusers.hooks" and name in REPLACING else ""


def changed_by(module: torch.nn.Module, before: bool) -> str | None:
    """A forward hook of torch, set by someone else, that may change the output of a module.

    Args:
        before: whether those that run before it count, too.

    Returns:
        Its name, or None if there is none.
    """
    hooks = list(module._forward_hooks.values())
    if before:
        hooks += module._forward_pre_hooks.values()
    functions = (getattr(hook, "func", hook) for hook in hooks)  # of partials
    suspects = (f for f in functions if not _is_harmless(f))
    return next((getattr(f, "__qualname__", type(f).__qualname__) for f in suspects), None)


def _is_harmless(hook: Any) -> bool:
    """Whether a hook comes from a package whose hooks change no values."""
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.partition(".")[0] in _HARMLESS


def check_copyable(root: torch.nn.Module) -> None:
    """Checks that a copy of a model would run its own weights.

    Raises:
        TypeError: it also has hooks of diffusers, whose copies run the original's modules.
    """
    for path, module in root.named_modules():
        registry = module.__dict__.get("_diffusers_hook")
        others = [] if registry is None else [n for n in registry._hook_order if n != HOOK_NAME]
        if others:
            raise TypeError(
                f"foca_dit: copy.deepcopy of {type(root).__name__}: expected no hooks of diffusers "
                f"beside the cache (their copies would run the original's weights), got {others} "
                f"on '{path}': copy the model first, then add hooks and cache to the copy"
            )


def _copied_forward(module: torch.nn.Module, memo: dict[int, Any]) -> Any:
    """What `deepcopy` makes of the `forward` that diffusers put on a module.

    That function knows the original's hooks; a copy looks its own up.
    """
    copied = copy.deepcopy(module, memo)
    forward: Any = functools.partial(_run_hooks, copied)
    functools.update_wrapper(forward, getattr(type(copied), "forward"))  # noqa: B009
    forward.__deepcopy__ = functools.partial(_copied_forward, copied)
    return forward


def _run_hooks(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    hooks: Any = module._diffusers_hook
    outermost = hooks._fn_refs[0]  # ours is the only one: `check_copyable`
    args, kwargs = outermost.pre_forward(module, *args, **kwargs)
    return outermost.post_forward(module, outermost.forward(*args, **kwargs))


def _contexts() -> Any:
    """A StateManager of diffusers whose context is that of the calling thread."""
    from diffusers.hooks.hooks import BaseState, StateManager

    class Contexts(StateManager):  # type: ignore[misc]
        def __init__(self) -> None:
            self._local = threading.local()
            super().__init__(BaseState)

        @property
        def _context(self) -> Any:
            return getattr(self._local, "context", None)

        @_context.setter
        def _context(self, context: Any) -> None:
            self._local.context = context

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return Contexts()

    return Contexts()


def _register_plainly(module: torch.nn.Module, hook: Hook) -> None:
    with _below_accelerate(module, alone=True):
        original = module.forward
        hook.initialize_hook(module)
        hook.fn_ref = SimpleNamespace(original_forward=original)
        hook.installed = module.forward = functools.update_wrapper(
            functools.partial(hook.new_forward, module), original
        )
    module.__dict__[_PLAIN] = hook


def _unshadow(module: torch.nn.Module) -> None:
    """Deletes an instance's `forward` if it is the class's own, unchanged."""
    if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
        del module.forward
