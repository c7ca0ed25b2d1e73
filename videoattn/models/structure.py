"""Describes the structure of networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from videoattn.attention.capture import capture
from videoattn.layers import Conv3d, meets_short_clip_bug
from videoattn.types import ModelInfo


class NoInit(TorchFunctionMode):
    """A mode that skips draws from normal distributions, for weights that are loaded later.

    Such parameters stay uninitialized memory. On the meta device, drawing normal numbers would
    import torch._dynamo, which takes as long as torch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func in (torch.Tensor.normal_, nn.init.normal_):
            return args[0] if args else options["tensor"]
        return func(*args, **options)


RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")


def residual_info(
    model: nn.Module,
    stages: Sequence[str] = RESNET_STAGES,
    *,
    classifier: str = "fc",
    axes: Literal["NCTHW", "NCHW"] = "NCTHW",
    branch_end: str | None = None,
) -> ModelInfo:
    """Returns the structure of a network that has one container for each stage of residual blocks.

    Args:
        model: The network, with or without inserted attention blocks.
        stages: Names of the containers.
        classifier, axes: See `ModelInfo`.
        branch_end: The last norm of a residual branch inside its block ("branch2.norm_c"); by
            default the last batch norm among the block's children.
    """
    blocks: dict[str, tuple[str, ...]] = {}
    ends: dict[str, str] = {}
    for stage in stages:
        children = dict(model.get_submodule(stage).named_children())
        kind = type(next(iter(children.values())))  # inserted blocks have another type
        blocks[stage] = tuple(
            f"{stage}.{n}" for n, child in children.items() if type(child) is kind
        )
        for name in blocks[stage]:
            end = branch_end or _last_norm(model.get_submodule(name))
            if end is not None:
                ends[name] = f"{name}.{end}"
    # A Sequential runs its blocks itself, so its output is the stage's; a ModuleList does not.
    is_run = isinstance(model.get_submodule(stages[-1]), nn.Sequential)
    features = stages[-1] if is_run else blocks[stages[-1]][-1]
    return ModelInfo(classifier, blocks, features, axes, ends)


def _last_norm(block: nn.Module) -> str | None:
    children = block.named_children()
    norms = [name for name, m in children if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return norms[-1] if norms else None


def unsafe_convolutions(model: nn.Module, video: Tensor) -> list[str]:
    """Returns names of convolutions whose bfloat16 gradients on a CPU are wrong for these clips.

    `layers.Conv3d` is safe and never listed.

    Args:
        model: The network, on the CPU in float32. It runs once, and keeps its mode.
        video: Any clips (N, C, T, H, W) of the training shape.
    """
    suspects = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv3d)
        and not isinstance(module, Conv3d)
        and module.kernel_size[0] > 1
    }
    if not suspects:
        return []
    was_training = model.training
    try:
        with torch.no_grad(), capture(model, list(suspects), inputs=True) as inputs:
            model.eval()(video)
    finally:
        model.train(was_training)
    return [name for name, x in inputs.items() if meets_short_clip_bug(suspects[name], x.shape[2])]
