"""`videoattn list attention`: every system, its map, and what it adds to a network."""

from functools import cache, partial
from typing import NamedTuple

import torch
from rich.table import Column, Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videoattn.attention.systems import SYSTEMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.recipe.console import console as out

COLUMNS = ("name", "system", "its map", "shape", "parameters", "MACs")
CLIP = (1, 3, 8, 224, 224)


class Row(NamedTuple):
    """A system, with the parameters and MACs that it adds to an I3D-R50 at its default positions.

    A multiply-add is one MAC. Elementwise operations are not counted.
    """

    name: str
    title: str
    map_of: str
    map_shape: str
    parameters: int
    macs: int

    def cells(self) -> list[str]:
        """Returns the columns after the name."""
        parameters, macs = f"{self.parameters / 1e6:+.2f} M", f"{self.macs / 1e9:+.2f} G"
        return [self.title, self.map_of, self.map_shape, parameters, macs]


def list_attention() -> None:
    """Prints a table of the attention systems."""
    table = Table(Column(COLUMNS[0], no_wrap=True), *COLUMNS[1:])
    for row in rows():
        table.add_row(row.name, *row.cells())
    table.caption = (
        "parameters and multiply-adds added to an I3D-R50 (28.0 M, 8x224x224 frames) at the "
        "default positions; to train with one: "
        "videoattn train configs/demo.yaml model.attention.name=NAME"
    )
    out.print(table)


@cache
def rows() -> list[Row]:
    """Returns a row for each system. Takes a few seconds to compute shapes."""
    base_parameters, base_macs = _count(_backbone())
    found = []
    for name, system in SYSTEMS.items():
        with torch.device("meta"):
            network = _backbone()
            model = system.attach(network, network.info, partial(system.make), (), name)
        parameters, macs = _count(model)
        title = f"{system.title} ({system.paper})"
        added = (parameters - base_parameters, macs - base_macs)
        found.append(Row(name, title, system.map_of, system.map_shape, *added))
    return found


def _backbone() -> ResNet3d:
    with torch.device("meta"):
        return ResNet3d("i3d", depth=50, num_classes=400)


def _count(model: nn.Module) -> tuple[int, int]:
    """Counts parameters, and multiply-adds of one clip, on the meta device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.empty(CLIP, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
