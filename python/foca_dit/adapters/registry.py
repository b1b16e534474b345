"""How a hook gets around a module's `forward`, and off again without a trace.

Models of diffusers get it through diffusers' own registry, so that it lives with their other hooks
(offloading, casting, `cache_context`). Any other model is served without diffusers.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch

HOOK_NAME = "foca_cache"
_PLAIN = "_foca_cache_hook"


class Hook:
    """What both registries expect of a hook; `new_forward` is called in the place of `forward`.

    Attributes:
        fn_ref: has the `original_forward`, once the hook is registered.
        contexts: diffusers' StateManager, through which it tells us of its `cache_context`.
    """

    _is_stateful = False
    fn_ref: Any
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


def is_of_diffusers(model: torch.nn.Module) -> bool:
    """Whether a model's class is one of diffusers', or derives from one."""
    return any(base.__module__.partition(".")[0] == "diffusers" for base in type(model).__mro__)


def register(root: torch.nn.Module, hooks: list[tuple[torch.nn.Module, Hook]]) -> None:
    """Puts hooks on modules of the model `root`, at most one on each."""
    if not is_of_diffusers(root):
        for module, hook in hooks:
            _register_plainly(module, hook)
        return
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import BaseState, StateManager

    for module, hook in hooks:
        if hook._is_stateful:
            hook.contexts = StateManager(BaseState)
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK_NAME)
    HookRegistry.check_if_exists_or_initialize(root)._child_registries_cache = None


def find(module: torch.nn.Module) -> Hook | None:
    """Our hook on a module, or None."""
    registry = module.__dict__.get("_diffusers_hook")
    hook = module.__dict__.get(_PLAIN) if registry is None else registry.get_hook(HOOK_NAME)
    return hook if isinstance(hook, Hook) else None


def remove(root: torch.nn.Module) -> None:
    """Takes all our hooks out of a model, and the registries that stand empty then."""
    registry = root.__dict__.get("_diffusers_hook")
    if registry is not None:
        registry.remove_hook(HOOK_NAME, recurse=True)
    for module in root.modules():
        if (hook := module.__dict__.pop(_PLAIN, None)) is not None:
            module.forward = hook.fn_ref.original_forward
            _unshadow(module)
        registry = module.__dict__.get("_diffusers_hook")
        if registry is None:
            continue
        registry._child_registries_cache = None
        if not registry.hooks:
            del module._diffusers_hook
            _unshadow(module)


def _register_plainly(module: torch.nn.Module, hook: Hook) -> None:
    original = module.forward
    hook.initialize_hook(module)
    hook.fn_ref = SimpleNamespace(original_forward=original)
    module.forward = functools.update_wrapper(functools.partial(hook.new_forward, module), original)
    module.__dict__[_PLAIN] = hook


def _unshadow(module: torch.nn.Module) -> None:
    """Deletes an instance's `forward` if it is the class's own, unchanged."""
    if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
        del module.forward
