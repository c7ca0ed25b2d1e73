"""Folds batch norms into convolutions for inference, and synchronizes them for training."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def fold_batch_norms(model: nn.Module, clip: Tensor) -> nn.Module:
    """Returns a copy of a network that computes the same logits, up to rounding, in fewer passes
    over memory: the norm γ (w x - μ) / σ + β of a convolution w x is a convolution with a bias.

    A norm is folded if nothing else reads the output of its convolution, as one forward pass shows.
    A network without such norms is returned itself.

    Args:
        model: A network in evaluation mode; it does not change.
        clip: Any input of the network, on its device.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return model
    with torch.no_grad(), _Reads(model) as reads:
        model(clip)
    pairs = reads.pairs()
    folded = copy.deepcopy(model) if pairs else model
    for conv_name, norm_name in pairs:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        assert isinstance(conv, _Convolution)
        assert isinstance(norm, _BatchNorm)
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        _replace(folded, norm, nn.Identity())
    return folded


def sync_batch_norms(model: nn.Module) -> None:
    """Makes batch norms compute their statistics over all processes, on GPUs. Parameters and names
    do not change. Norms of gates, which may have a single value per channel, stay as they are."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for norm in [module for module in model.modules() if type(module) in kinds]:
        _replace(model, norm, nn.SyncBatchNorm.convert_sync_batchnorm(norm))


def _replace(model: nn.Module, norm: nn.Module, new: nn.Module) -> None:
    """Replaces a norm under all its names, and keeps the attention blocks inserted after it."""
    for name, block in norm.named_children():
        new.add_module(name, block)
    for hook in norm._forward_hooks.values():  # which runs the blocks
        new.register_forward_hook(hook)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is norm:
            model.set_submodule(name, new)


class _Reads(TorchDispatchMode):
    """Records which batch norm reads the output of which convolution, and how often any operation
    reads that output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._outputs: dict[int, tuple[str, Tensor]] = {}  # by their identity, while they are alive
        self._counts: Counter[int] = Counter()
        self._inputs: dict[str, list[int]] = {}  # of each norm; 0: not from a convolution

    def __enter__(self) -> "_Reads":
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                if isinstance(module, _Convolution):
                    wrote = partial(self._wrote, name)  # before blocks that are inserted after it
                    stack.enter_context(module.register_forward_hook(wrote, prepend=True))
                elif isinstance(module, _BatchNorm) and module.track_running_stats:
                    stack.enter_context(
                        module.register_forward_pre_hook(partial(self._reads, name))
                    )
            self._hooks = stack.pop_all()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self._counts.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the names of each convolution and norm that can be folded."""
        readers: dict[str, set[str]] = {}
        for number, (conv, _) in self._outputs.items():
            alone = self._counts[number] == 1
            found = {norm for norm, numbers in self._inputs.items() if number in numbers and alone}
            readers.setdefault(conv, set()).update(found or {""})
        return [
            (conv, norm)
            for conv, (norm, *others) in readers.items()
            if norm and not others and all(self._is_from(conv, n) for n in self._inputs[norm])
        ]

    def _is_from(self, conv: str, number: int) -> bool:
        return number in self._outputs and self._outputs[number][0] == conv

    def _wrote(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._outputs[id(output)] = name, output
        self._counts[id(output)] = 0  # an earlier tensor may have had the same identity

    def _reads(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        known = id(x) in self._outputs
        self._inputs.setdefault(name, []).append(id(x) if known else 0)
