"""Trains a recipe with wrong labels, with several attention systems, and prints the accuracies.

    python tools/bench/label_noise.py configs/demo.yaml data.root=runs/demo/clips

Wang et al. (Residual Attention Network, CVPR 2017) argue that masks shield the trunk from wrong
labels. Test labels are correct. Finished runs are not repeated, so an interrupted call continues
where it stopped. Every cell has a result before the next seed starts.
"""

import statistics
from pathlib import Path
from typing import Annotated

import typer
from common import print_table

from videoattn.cli.arguments import Device, Overrides, Recipe
from videoattn.cli.compare import command as compare
from videoattn.cli.comparison import Result

SHARES = (0.0, 0.2, 0.4)
SYSTEMS = ("none", "residual_attention", "non_local", "cbam")


def label_noise(
    recipe: Recipe,
    overrides: Overrides = None,
    share: Annotated[
        list[float], typer.Option(help="Share of wrong training labels. Repeatable.")
    ] = list(SHARES),  # noqa: B006 (typer copies it)
    system: Annotated[
        list[str], typer.Option(help="An attention system, or none. Repeatable.")
    ] = list(SYSTEMS),  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Runs per cell, with seeds 0, 1, ...")] = 3,
    folder: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/label_noise"),
    device: Device = "auto",
) -> None:
    """Train with wrong labels and print the accuracy of each system at each share."""
    table: dict[float, dict[str, list[Result]]] = {}
    for count in range(1, seeds + 1):
        for wrong in share:
            changes = [*(overrides or ()), f"data.label_noise={wrong}"]
            runs = folder / f"noise_{wrong:g}"
            (rows,) = compare(recipe, changes, system, count, runs, device).values()
            table[wrong] = {name: list(row.values()) for name, row in rows.items()}
        print()  # ends the table of `compare`
        print_table(
            ("attention", *(f"{100 * wrong:g} % wrong" for wrong in share)),
            [(f"`{name}`", *(_cell(table[wrong][name]) for wrong in share)) for name in system],
            note=f"video accuracy: mean (range) of {count} seeds, n = "
            f"{table[share[0]][system[0]][0].num_videos} test videos with right labels",
        )


def _cell(results: list[Result]) -> str:
    scores = [100 * result.video_accuracy for result in results]
    return f"{statistics.mean(scores):.1f} % ({min(scores):.1f} - {max(scores):.1f})"


if __name__ == "__main__":
    typer.run(label_noise)
