"""A stand-in for CUDA graphs on the CPU: what was launched is launched again, Python is not run.

As in a graph, values that Python read while recording stay as they were, and tensors that came from
outside are read where they are.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output


def recorded(run, device):
    """(replay, output), as `foca_dit.capture.captured_on_cuda` returns them."""
    assert device.type == "cpu"
    with _Recorder() as recorder:
        output = run()

    @torch.inference_mode()
    def replay():
        now = {}

        def moved(value):
            return tree_map_only(torch.Tensor, lambda t: now.get(id(t), t), value)

        for func, args, kwargs, before in recorder.calls:
            after = func(*moved(args), **moved(kwargs))
            pairs = zip(tree_leaves(before), tree_leaves(after), strict=True)
            now.update((id(a), b) for a, b in pairs if isinstance(a, torch.Tensor))
        for own in tree_leaves(output):
            if id(own) in now:
                own.copy_(now[id(own)])

    return replay, output
