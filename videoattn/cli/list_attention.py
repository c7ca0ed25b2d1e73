"""`videoattn list attention`: every system, what its map means, and what it adds to a network."""

from functools import cache
from typing import NamedTuple

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.recipe.run import out

CLIP = (1, 3, 8, 224, 224)


class Row(NamedTuple):
    """One system. parameters, macs: what it adds to an I3D-R50 on 8x224x224 at its default places;
    one multiply-add is one MAC, elementwise work is not counted."""

    name: str
    title: str
    paper: str
    map_of: str
    map_shape: str
    parameters: int
    macs: int


@cache
def rows() -> list[Row]:
    """One for each system, in their order. A few seconds of shape arithmetic."""
    base_parameters, base_macs = _count(_backbone())
    found = []
    for name, system in SYSTEMS.items():
        with torch.device("meta"):
            backbone = _backbone()
            model = system.attach(backbone, backbone.info, system.make, (), name)
        parameters, macs = _count(model)
        found.append(
            Row(
                name,
                system.title,
                system.paper,
                system.map_of,
                system.map_shape,
                parameters - base_parameters,
                macs - base_macs,
            )
        )
    return found


def list_attention(*, markdown: bool = False) -> None:
    head = ("name", "system", "its map", "shape", "parameters", "MACs")
    if markdown:
        lines = [_line(head), _line(["---"] * len(head))]
        lines += [_line([f"`{row.name}`", *_cells(row)]) for row in rows()]
        out.print("\n".join(lines), markup=False, soft_wrap=True)
        return
    table = Table(*head)
    for row in rows():
        table.add_row(row.name, *_cells(row))
    table.caption = (
        "parameters and multiply-adds added to an I3D-R50 (28.0 M, 8x224x224 frames) at the "
        "default places; try one with: videoattn train configs/demo.yaml model.attention.name=NAME"
    )
    out.print(table)


def _cells(row: Row) -> list[str]:
    return [
        f"{row.title} ({row.paper})",
        row.map_of,
        row.map_shape,
        f"{row.parameters / 1e6:+.2f} M",
        f"{row.macs / 1e9:+.2f} G",
    ]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _backbone() -> ResNet3d:
    with torch.device("meta"):
        return ResNet3d("i3d", depth=50, num_classes=400)


def _count(model: nn.Module) -> tuple[int, int]:
    """Parameters, and multiply-adds of one clip; shapes only."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.empty(CLIP, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
