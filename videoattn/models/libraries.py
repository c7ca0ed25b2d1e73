"""Builds the networks of torchvision, pytorchvideo and timm by name, and describes their structure.

Parameters keep the names of the library. torchvision's R(2+1)D cannot be an entry of
`resnet3d.KERNELS`: it splits each convolution into two with a norm between them, and halves the
number of frames in three stages. pytorchvideo's networks take one clip (N, 3, T, H, W) and return
logits (N, K), in training and in evaluation.

A library is imported only for its own networks: torchvision takes as long to import as torch.
"""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from videoattn.errors import one_of
from videoattn.models.structure import residual_info
from videoattn.models.tsn import TSN
from videoattn.types import Logits, ModelInfo

TORCHVISION = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
PYTORCHVIDEO = {
    **dict.fromkeys(("c2d_r50", "i3d_r50", "slow_r50", "csn_r101"), "model_num_class"),
    **dict.fromkeys(("r2plus1d_r50", "x3d_xs", "x3d_s", "x3d_m", "x3d_l"), "model_num_class"),
    **dict.fromkeys(("efficient_x3d_xs", "efficient_x3d_s"), "num_classes"),
}
"""The hub's convolutional networks of one clip, and the argument of each for the number of classes.
The others take two clips at once (slowfast), boxes (detection), or turn a clip of one fixed size
into tokens (mvit), and a video block cannot be inserted between tokens."""


def torchvision_model(name: str, **options: Any) -> nn.Module:
    """Returns a network of torchvision with random weights."""
    from torchvision.models import get_model

    return get_model(name, weights=None, **options)


def make_torchvision(name: str, *, num_classes: int) -> nn.Module:
    """Returns a video network of torchvision; its average pools also take smaller clips."""
    return with_fitting_pools(torchvision_model(name, num_classes=num_classes))


def make_pytorchvideo(name: str, *, num_classes: int) -> nn.Module:
    """Returns a network of pytorchvideo's hub; its average pools also take smaller clips."""
    hub = _import("pytorchvideo", "pytorchvideo.models.hub")
    # The heads of these networks return probabilities unless the activation is removed.
    logits = {"head_activation": None} if name.startswith(("r2plus1d", "x3d")) else {}
    return with_fitting_pools(getattr(hub, name)(**{PYTORCHVIDEO[name]: num_classes}, **logits))


def make_timm_tsn(
    *,
    num_classes: int,
    backbone: str = "resnet50",
    consensus: str = "mean",
    dropout: float = 0.5,
    shift_div: int | None = None,
    shift_place: str = "residual",
) -> TSN:
    """Returns a `TSN` over one of timm's ResNets (`timm.list_models(module="resnet")`)."""
    timm = _import("timm", "timm")
    known = dict.fromkeys(timm.list_models(module="resnet"))
    network = timm.create_model(one_of("options.backbone", backbone, known), pretrained=False)
    # torchvision's names for these layers, which have no parameters.
    network.relu, network.avgpool = network.act1, network.global_pool
    return TSN(
        network,
        num_classes=num_classes,
        consensus=consensus,
        dropout=dropout,
        shift_div=shift_div,
        shift_place=shift_place,
    )


def info(model: nn.Module) -> ModelInfo | None:
    """Returns the structure of a network of these libraries, or None for other networks."""
    if _is_a(model, "torchvision.models.video.s3d", "S3D"):
        # `features` lists all layers; these indices are those of Inception's Mixed blocks.
        stages = {
            f"Mixed_{number}": tuple(f"features.{index}" for index in blocks)
            for number, blocks in ((3, range(5, 7)), (4, range(8, 13)), (5, range(14, 16)))
        }
        return ModelInfo("classifier.1", stages, features="features.15")
    if _is_a(model, "torchvision.models.video.resnet", "VideoResNet"):
        return residual_info(model, branch_end="conv2.1")
    if _is_a(model, "torchvision.models.resnet", "ResNet") or _is_a(
        model, "timm.models.resnet", "ResNet"
    ):
        return residual_info(model, axes="NCHW")
    if _is_a(model, "pytorchvideo.models.net", "Net"):
        blocks = dict(model.get_submodule("blocks").named_children())
        containers = [
            f"blocks.{n}.res_blocks" for n, block in blocks.items() if hasattr(block, "res_blocks")
        ]
        if not containers:
            return None
        head = f"blocks.{list(blocks)[-1]}.proj"
        return residual_info(model, containers, classifier=head, branch_end="branch2.norm_c")
    if _is_a(model, "pytorchvideo.models.accelerator.mobile_cpu.efficient_x3d", "EfficientX3d"):
        return residual_info(
            model,
            ("s2", "s3", "s4", "s5"),
            classifier="projection.model",
            branch_end="layers.conv_2.kernel.bn",
        )
    return None


def head(model: Any, features: Tensor) -> Logits | None:
    """Returns the logits for the last features of a video network, or None for other networks."""
    if _is_a(model, "torchvision.models.video.s3d", "S3D"):
        return model.classifier(model.avgpool(features)).mean((2, 3, 4))
    if _is_a(model, "torchvision.models.video.resnet", "VideoResNet"):
        return model.fc(model.avgpool(features).flatten(1))
    if _is_a(model, "pytorchvideo.models.net", "Net"):
        return list(model.blocks)[-1](features)
    return None


def _is_a(model: nn.Module, module: str, name: str) -> bool:
    """Returns whether the network is of a library's class, without importing the library."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(model, getattr(loaded, name))


def _import(package: str, module: str) -> ModuleType:
    """Imports a module of a package, or raises a ValueError if the package is not installed."""
    try:
        with warnings.catch_warnings():  # pytorchvideo scripts functions when it is imported
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(
            f"name: {package} is not installed, and this network needs it; "
            f"pip install 'videoattn[{package}]'"
        ) from error


class FittingAvgPool3d(nn.AvgPool3d):
    """An average pool; an axis shorter than its window is averaged whole."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.kernel_size, tuple)
        window = [min(pair) for pair in zip(self.kernel_size, x.shape[2:], strict=True)]
        return nn.functional.avg_pool3d(x, window, self.stride)


def with_fitting_pools(model: nn.Module) -> nn.Module:
    """Replaces `nn.AvgPool3d` by `FittingAvgPool3d` in place, so that smaller clips can be used."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.AvgPool3d:
            assert module.padding in (0, (0, 0, 0))
            model.set_submodule(name, FittingAvgPool3d(module.kernel_size, module.stride))
    return model
