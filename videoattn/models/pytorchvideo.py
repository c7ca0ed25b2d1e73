"""Builds the networks of pytorchvideo's hub by name, with pytorchvideo's parameter names.

All take one clip (N, 3, T, H, W) and return logits (N, K), in training and in evaluation.
"""

import sys

from torch import Tensor, nn

from videoattn.models.structure import optional_import, residual_info, with_fitting_pools
from videoattn.types import Logits, ModelInfo

NAMES = {
    **dict.fromkeys(("c2d_r50", "i3d_r50", "slow_r50", "csn_r101"), "model_num_class"),
    **dict.fromkeys(("r2plus1d_r50", "x3d_xs", "x3d_s", "x3d_m", "x3d_l"), "model_num_class"),
    **dict.fromkeys(("efficient_x3d_xs", "efficient_x3d_s"), "num_classes"),
}
"""The hub's convolutional networks of one clip, and the argument of each for the number of classes.
The others take two clips at once (slowfast), boxes (detection), or turn a clip of one fixed size
into tokens (mvit), and a video block cannot be inserted between tokens."""


def make(name: str, *, num_classes: int) -> nn.Module:
    """Returns the hub's network; average pools of a fixed window also take smaller clips."""
    hub = optional_import("pytorchvideo", "pytorchvideo.models.hub")
    # The heads of these networks return probabilities unless the activation is removed.
    logits = {"head_activation": None} if name.startswith(("r2plus1d", "x3d")) else {}
    return with_fitting_pools(getattr(hub, name)(**{NAMES[name]: num_classes}, **logits))


def info(model: nn.Module) -> ModelInfo | None:
    """Returns the structure of a pytorchvideo network, or None for other networks."""
    if _is_a(model, "net", "Net"):
        blocks = model.get_submodule("blocks")
        numbers = [name for name, _ in blocks.named_children()]
        modules = dict(blocks.named_modules())
        stages = [f"blocks.{n}.res_blocks" for n in numbers if f"{n}.res_blocks" in modules]
        if not stages:
            return None
        classifier = f"blocks.{numbers[-1]}.proj"
        return residual_info(model, stages, classifier=classifier, branch_end="branch2.norm_c")
    if _is_a(model, "accelerator.mobile_cpu.efficient_x3d", "EfficientX3d"):
        return residual_info(
            model,
            ("s2", "s3", "s4", "s5"),
            classifier="projection.model",
            branch_end="layers.conv_2.kernel.bn",
        )
    return None


def head(model: nn.Module, features: Tensor) -> Logits | None:
    """Returns a pytorchvideo network's logits for its last features, or None for others."""
    if _is_a(model, "net", "Net"):
        return list(model.get_submodule("blocks").children())[-1](features)
    return None


def _is_a(model: nn.Module, module: str, name: str) -> bool:
    """Returns whether the network is of a class of pytorchvideo, without importing the library."""
    loaded = sys.modules.get(f"pytorchvideo.models.{module}")
    return loaded is not None and isinstance(model, getattr(loaded, name))
