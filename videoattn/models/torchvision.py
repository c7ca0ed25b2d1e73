"""Builds torchvision's video networks by name, with torchvision's parameter names.

R(2+1)D cannot be an entry of `resnet3d.KERNELS`: it splits each convolution into two with a norm
between them, and halves the number of frames in three stages.

torchvision takes as long to import as torch, so it is imported for its own networks only.
"""

import sys
from typing import Any

from torch import Tensor, nn

from videoattn.models.structure import residual_info, with_fitting_pools
from videoattn.types import Logits, ModelInfo

NAMES = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")


def make(name: str, *, num_classes: int) -> nn.Module:
    """Returns torchvision's network; average pools of a fixed window also take smaller clips."""
    return with_fitting_pools(get_model(name, num_classes=num_classes))


def get_model(name: str, **options: Any) -> nn.Module:
    """Returns a network of torchvision with random weights."""
    from torchvision.models import get_model

    return get_model(name, weights=None, **options)


def info(model: nn.Module) -> ModelInfo | None:
    """Returns the structure of a torchvision network, or None for other networks."""
    if "torchvision" not in sys.modules:
        return None
    from torchvision.models.resnet import ResNet
    from torchvision.models.video import S3D, VideoResNet

    if isinstance(model, S3D):  # the list of all layers; these are Inception's Mixed blocks
        stages = {
            f"Mixed_{number}": tuple(f"features.{index}" for index in blocks)
            for number, blocks in ((3, range(5, 7)), (4, range(8, 13)), (5, range(14, 16)))
        }
        return ModelInfo("classifier.1", stages, features="features.15")
    if isinstance(model, VideoResNet):
        return residual_info(model, branch_end="conv2.1")
    if isinstance(model, ResNet):
        return residual_info(model, axes="NCHW")
    return None


def head(model: nn.Module, features: Tensor) -> Logits | None:
    """Returns a torchvision video network's logits for its last features, or None for others."""
    if "torchvision" not in sys.modules:
        return None
    from torchvision.models.video import S3D, VideoResNet

    if isinstance(model, S3D):
        scores: Tensor = model.classifier(model.avgpool(features))
        return scores.mean((2, 3, 4))
    if isinstance(model, VideoResNet):
        return model.fc(model.avgpool(features).flatten(1))
    return None
