"""Folds batch norms into convolutions for inference, and synchronizes them for training."""

import copy
from collections import Counter, defaultdict
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
    pairs = _pairs(model, clip)
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
    """Counts how often operations read each tensor, by its identity."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.counts.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


def _pairs(model: nn.Module, clip: Tensor) -> list[tuple[str, str]]:
    """Returns the names of the convolutions and norms to fold, as one forward pass shows them."""
    reads = _Reads()
    outputs: dict[int, tuple[str, Tensor]] = {}  # of convolutions, which are kept alive
    norm_of: dict[int, str] = {}  # the norm that read an output
    sources: dict[str, set[str]] = defaultdict(set)  # the convolutions that a norm read, or ""

    def wrote(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[id(output)] = name, output
        reads.counts[id(output)] = 0  # an earlier tensor may have had the same identity

    def read(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        number = id(inputs[0])
        sources[name].add(outputs[number][0] if number in outputs else "")
        norm_of[number] = name

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, _Convolution):  # first, before blocks that are inserted after it
                hook = module.register_forward_hook(partial(wrote, name), prepend=True)
                hooks.enter_context(hook)
            elif isinstance(module, _BatchNorm) and module.track_running_stats:
                hooks.enter_context(module.register_forward_pre_hook(partial(read, name)))
        with torch.no_grad(), reads:
            model(clip)
    readers: dict[str, set[str]] = defaultdict(set)
    for number, (conv, _) in outputs.items():
        readers[conv].add(norm_of.get(number, "") if reads.counts[number] == 1 else "")
    return [
        (conv, norm)
        for conv, (norm, *others) in readers.items()
        if norm and not others and sources[norm] == {conv}
    ]
