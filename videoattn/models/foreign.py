"""Other libraries' networks by name: torchvision's video networks, pytorchvideo's hub, and timm's
ResNets as the image network of a TSN.

They are what those libraries build, with their own parameter names: (N, 3, T, H, W) -> logits
(N, K), in training and in evaluation. Two things are seen to here. pytorchvideo's X3D and R(2+1)D
would answer probabilities. And average pools of a fixed window, made for one size of clip, take
smaller clips too.

R(2+1)D is one of them, and no row of resnet3d's temporal kernels: every one of its convolutions is
two, with a norm between them, and it halves the frames in three stages.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType

import torchvision
from torch import Tensor, nn

from videoattn.errors import one_of
from videoattn.models.tsn import TSN

TORCHVISION = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
PYTORCHVIDEO = {
    **dict.fromkeys(("c2d_r50", "i3d_r50", "slow_r50", "csn_r101"), "model_num_class"),
    **dict.fromkeys(("r2plus1d_r50", "x3d_xs", "x3d_s", "x3d_m", "x3d_l"), "model_num_class"),
    **dict.fromkeys(("efficient_x3d_xs", "efficient_x3d_s"), "num_classes"),
}
"""The hub's convolutional networks of one clip, and what each calls the number of classes. The
others take two clips at once (slowfast), boxes (detection), or turn a clip of one fixed size into
tokens, between which no video block fits (mvit)."""


class FittingAvgPool3d(nn.AvgPool3d):
    """An average over a window; an axis shorter than the window is averaged whole."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.kernel_size, tuple)
        window = [min(pair) for pair in zip(self.kernel_size, x.shape[2:], strict=True)]
        return nn.functional.avg_pool3d(x, window, self.stride)


def _torchvision(name: str, *, num_classes: int) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if name == "s3d":  # one list of all its layers; these are what Inception-I3D calls Mixed
        model.block_stages = {
            f"Mixed_{number}": [f"features.{index}" for index in units]
            for number, units in ((3, range(5, 7)), (4, range(8, 13)), (5, range(14, 16)))
        }
    return _fitting(model)


def _pytorchvideo(name: str, *, num_classes: int) -> nn.Module:
    hub = _optional("pytorchvideo", "pytorchvideo.models.hub")
    logits = {"head_activation": None} if name.startswith(("r2plus1d", "x3d")) else {}
    return _fitting(getattr(hub, name)(**{PYTORCHVIDEO[name]: num_classes}, **logits))


def _tsn_timm(
    *, num_classes: int, backbone: str = "resnet50", consensus: str = "mean", dropout: float = 0.5,
    shift_div: int | None = None, shift_place: str = "residual",
) -> TSN:  # fmt: skip
    """backbone: one of timm's ResNets (`timm.list_models(module="resnet")`), such as resnet26d."""
    timm = _optional("timm", "timm")
    known = dict.fromkeys(timm.list_models(module="resnet"))
    one_of("model.options.backbone", backbone, known)
    network = timm.create_model(backbone, pretrained=False)
    # What torchvision calls these; neither has parameters.
    network.relu, network.avgpool = network.act1, network.global_pool
    return TSN(
        network, num_classes=num_classes, consensus=consensus, dropout=dropout,
        shift_div=shift_div, shift_place=shift_place,
    )  # fmt: skip


FOREIGN: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(_torchvision, name) for name in TORCHVISION},
    **{f"pytorchvideo_{name}": partial(_pytorchvideo, name) for name in PYTORCHVIDEO},
    "tsn_timm": _tsn_timm,
}


def _optional(package: str, module: str) -> ModuleType:
    """Raises: ValueError where the package, an extra of ours, is not installed."""
    try:
        with warnings.catch_warnings():  # pytorchvideo scripts functions as it is imported
            warnings.simplefilter("ignore", DeprecationWarning)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ValueError(
            f"model.name: {package} is not installed, and this network is of it; "
            f"pip install 'videoattn[{package}]'"
        ) from error


def _fitting(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if type(module) is nn.AvgPool3d:
            assert module.padding in (0, (0, 0, 0))
            fitting = FittingAvgPool3d(module.kernel_size, module.stride)
            model.set_submodule(name, fitting)
    return model
