"""`videoattn list`: lists the attention systems and the public models."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
import typer
from rich.table import Column, Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from videoattn.attention.systems import SYSTEMS
from videoattn.recipe.console import console, show
from videoattn.recipe.model import make_model, split_systems
from videoattn.weights.public import PUBLIC
from videoattn.weights.row import PublicModel

COLUMNS = ("name", "system", "its map", "shape", "parameters", "MACs")
CLIP = (1, 3, 8, 224, 224)


class AttentionRow(NamedTuple):
    """An attention system, with the parameters and MACs that it adds to an I3D-R50.

    It is at its default positions. A multiply-add is one MAC; elementwise operations do not count.
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


def attention(
    systems: Annotated[
        list[str] | None,
        typer.Argument(help="Systems, or several in one network (non_local+cbam); all by default."),
    ] = None,
) -> None:
    """List each attention system and its cost.

    Shows what the map means, and the parameters and MACs that the system adds to an I3D-R50.
    """
    kept = ("name", "parameters", "MACs")
    table = Table(*(Column(name, no_wrap=name in kept) for name in COLUMNS))
    for row in attention_rows(tuple(systems or SYSTEMS)):
        table.add_row(row.name, *row.cells())
    table.caption = (
        "parameters and multiply-adds added to an I3D-R50 (28.0 M, 8x224x224 frames) at the "
        "default positions; to train with one: "
        "videoattn train demo model.attention.name=NAME"
    )
    console.print(table)


def weights() -> None:
    """List each public model and its accuracy.

    Shows the network, the published accuracy with its views, the license, and the file.
    """
    for name, row in PUBLIC.items():
        details = (row.network, frames_of(row), attention_of(row), accuracy_of(row), row.license)
        show(name)
        show(f"  {', '.join(detail for detail in details if detail)}")
        # Addresses are long. Each has its own line so that it can be copied.
        show(f"  file: {row.url or f'not published: {row.file.absent}'}")
        if row.accuracy:
            doubt = f" ({row.accuracy.doubt})" if row.accuracy.doubt else ""
            show(f"  accuracy: {row.accuracy.source}{doubt}")
    show("")
    show(
        "These pages report the accuracies, on the validation set of Kinetics-400 unless another "
        "dataset is named. To try a model: videoattn predict NAME VIDEO. Its file is "
        "downloaded once"
    )


def attention_rows(names: Sequence[str] = tuple(SYSTEMS)) -> list[AttentionRow]:
    """Returns a row for each system, or several joined by "+"; takes a few seconds."""
    base_parameters, base_macs = _count(None)
    found = []
    for name in names:
        systems = [SYSTEMS[part] for part in split_systems("system", name)]
        parameters, macs = _count(name)
        texts = (
            " + ".join(f"{system.title} ({system.paper})" for system in systems),
            "; ".join(system.map_of for system in systems),
            "; ".join(system.map_shape for system in systems),
        )
        found.append(AttentionRow(name, *texts, parameters - base_parameters, macs - base_macs))
    return found


def _count(attention: str | None) -> tuple[int, int]:
    with torch.device("meta"):
        return count(make_model("i3d_r50", 400, attention=attention), CLIP)


def count(model: nn.Module, shape: Sequence[int]) -> tuple[int, int]:
    """Counts parameters, and multiply-adds for an input of this shape, on the meta device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.empty(*shape, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def frames_of(row: PublicModel) -> str:
    """Returns the sampling of a clip, such as "8 x 8" or "8 segments"."""
    clip = row.preprocessing
    if clip.sampling == "dense":
        return f"{clip.num_frames} x {clip.frame_stride}"
    return f"{clip.num_frames} segments" if clip.num_frames > 1 else "an image"


def attention_of(row: PublicModel) -> str:
    """Returns the attention blocks, such as "5 non-local (gaussian)", or ""."""
    if row.non_local is None:
        return ""
    form = str(row.non_local.get("form", "embedded_gaussian")).replace("_", " ")
    return f"{len(row.after)} non-local ({form})"


def accuracy_of(row: PublicModel) -> str:
    """Returns the published accuracy with its views, or "" if none was published."""
    if row.accuracy is None:
        return ""
    dataset = "" if row.dataset == "Kinetics-400" else f"{row.dataset}, "
    return f"{row.accuracy.top1:g} % ({dataset}{row.preprocessing.views})"
