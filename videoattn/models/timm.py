"""Builds temporal segment networks over timm's ResNets."""

import sys

from torch import nn

from videoattn.errors import one_of
from videoattn.models.structure import optional_import, residual_info
from videoattn.models.tsn import TSN
from videoattn.types import ModelInfo


def make_tsn(
    *,
    num_classes: int,
    backbone: str = "resnet50",
    consensus: str = "mean",
    dropout: float = 0.5,
    shift_div: int | None = None,
    shift_place: str = "residual",
) -> TSN:
    """Returns a `TSN` over one of timm's ResNets (`timm.list_models(module="resnet")`)."""
    timm = optional_import("timm", "timm")
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
    """Returns the structure of one of timm's ResNets, or None for other networks."""
    resnet = sys.modules.get("timm.models.resnet")  # if not loaded, the network is not timm's
    if resnet is None or not isinstance(model, resnet.ResNet):
        return None
    return residual_info(model, axes="NCHW")
