"""`videoattn faithful`: scores whether the maps of a run show what the network uses."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor, nn

from videoattn.cli.arguments import Device
from videoattn.cli.env import machine
from videoattn.cli.faithful_report import Results, write_removal
from videoattn.data.lists import Samples
from videoattn.engine.checkpoint import check_classes
from videoattn.engine.parallel import Parallel, resolve_device
from videoattn.errors import one_of
from videoattn.explain.faithful.removal import Hider
from videoattn.explain.faithful.score import (
    Field,
    make_fields,
    score_blocks,
    score_maps,
    shuffle_test,
)
from videoattn.explain.post_hoc import FILLS, METHODS
from videoattn.explain.truth import cells
from videoattn.files import output_folder
from videoattn.recipe.console import show
from videoattn.recipe.data import make_loader, make_samples, make_to_video
from videoattn.recipe.memory import remembered_data
from videoattn.recipe.run import Predictor, load
from videoattn.types import Failure, Grid

FOLDER = "faithful"
NUM_VIDEOS = 100


Maps = Annotated[
    list[str] | None,
    typer.Option(help="Attention maps whose names start with this. Repeatable."),
]
Methods = Annotated[
    list[str] | None, typer.Option(help="A method that explains a class score. Repeatable.")
]
Fills = Annotated[str, typer.Option(help="What a hidden cell shows: mean, blur, zero, freeze.")]
Seed = Annotated[int, typer.Option(min=0, help="Chooses the videos and random orders.")]
Against = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS",
        help="Score the difference to the score of this class. With --randomize: a run whose maps "
        "are compared, too, such as one trained on wrong labels.",
    ),
]
RunAndOverrides = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN", help="A run, then changes to its recipe as key=value: data.root=FOLDER"
    ),
]
Instead = Annotated[
    list[bool] | None,
    typer.Option(
        "--randomize/--known-motion",
        help="Instead, compare maps before and after parameters are redrawn, or with the demo's "
        "known moving objects.",
    ),
]


def command(
    run: RunAndOverrides,
    maps: Maps = None,
    method: Methods = None,
    videos: Annotated[int, typer.Option(min=1, help="The number of videos.")] = NUM_VIDEOS,
    fill: Fills = "mean,freeze",
    seed: Seed = 0,
    against: Against = None,
    instead: Instead = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; RUN/faithful if not given.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Score whether maps show what the network uses.

    Hides the places that each map marks, in the order of the map, and compares the effect with that
    of random and simple orders. Writes tables and curves. An interrupted command continues where
    it stopped. Without --maps and --method, scores all of both.
    """
    if instead and len(set(instead)) > 1:
        raise ValueError(
            "--randomize and --known-motion are two measurements; choose one at a time"
        )
    path, *overrides = run
    data = remembered_data(Path(path))
    predictor = load(path, resolve_device(device), overrides=overrides, data=data)
    chosen = choose(predictor, maps or (), method or (), seed=seed, num_videos=videos, out=out)
    if instead and not instead[0]:
        from videoattn.cli.faithful_motion import score_known_motion

        score_known_motion(chosen)
        return
    clips = Clips(chosen)
    if instead:
        from videoattn.cli.faithful_randomize import compare_randomized

        compare_randomized(chosen, clips, against)
        return
    fills = fill.split(",")
    for name in fills:
        one_of("--fill", name, FILLS)
    if against is not None:
        one_of("--against", against, predictor.class_names)
    score_removal(chosen, clips, fills, against)


class Chosen(NamedTuple):
    """The selection that is scored: names of maps and methods, and a number of random videos."""

    predictor: Predictor
    maps: tuple[str, ...]
    methods: tuple[str, ...]
    seed: int
    num_videos: int
    out: Path | None = None

    @property
    def folder(self) -> Path:
        return output_folder(self.out or self.predictor.folder / FOLDER)

    def fields(
        self, video: Tensor, target: int, model: nn.Module | None = None, **options: int
    ) -> dict[str, Field]:
        """Returns the fields of the chosen maps by name, for the network or a changed copy."""
        model = model or self.predictor.model
        recorded = bool(self.maps)
        found = make_fields(model, video, target, self.methods, recorded=recorded, **options)
        return {name: found[name] for name in (*self.maps, *self.methods)}

    def settings(self, **more: object) -> dict[str, Any]:
        """Returns the settings that the results depend on, with `more`, for their header."""
        return {
            "run": self.predictor.config.name,
            "network": self.predictor.config.model.name,
            "maps": [*self.maps, *self.methods],
            "videos": self.num_videos,
            "seed": self.seed,
            **more,
        }


def choose(
    predictor: Predictor,
    maps: Sequence[str],
    methods: Sequence[str],
    *,
    seed: int,
    num_videos: int,
    out: Path | None = None,
) -> Chosen:
    """Returns the maps with positions and the methods that apply; prints the methods left out.

    Raises:
        ValueError: If a named method does not exist or does not apply, or no map has the name.
    """
    clip = predictor.config.clip
    grid = clip.num_frames, clip.height, clip.width
    video = torch.randn(1, 3, *grid, generator=torch.Generator().manual_seed(0))
    video = video.to(predictor.device)
    recorded: list[str] = []
    if maps or not methods:
        recorded = list(make_fields(predictor.model, video, 0, ()))
        if maps:
            starting = [name for name in recorded if name.startswith(tuple(maps))]
            if not starting:
                names = ", ".join(recorded) or "none"
                raise ValueError(f"--maps {' '.join(maps)}: choose from {names}")
            recorded = starting
    applicable = list(methods)
    for name in methods or ([] if maps else METHODS):
        one_of("--method", name, METHODS)
        try:
            make_fields(predictor.model, video, 0, [name], recorded=False)
        except ValueError as error:
            if methods:
                raise
            show(f"note: {name} is left out: {error}")
            continue
        applicable += [] if methods else [name]
    return Chosen(predictor, tuple(recorded), tuple(applicable), seed, num_videos, out)


class Clips:
    """The center views of randomly chosen test videos.

    Raises:
        ValueError: If the run's test videos are unknown, or have other classes.
    """

    def __init__(self, chosen: Chosen) -> None:
        predictor = chosen.predictor
        config = predictor.config
        if not config.data.root:
            raise ValueError("the test videos of this run are unknown; set data.root=FOLDER")
        self.samples: Samples = make_samples(config.data, "test")
        check_classes(predictor.checkpoint, predictor.class_names, self.samples.class_names)
        config = replace(config, test=replace(config.test, num_clips=1, num_crops=1))
        self.dataset = make_loader(config, "test", Parallel(), self.samples).dataset
        self.to_video = make_to_video(config.clip, predictor.device)
        generator = torch.Generator().manual_seed(chosen.seed)
        order = torch.randperm(len(self.samples), generator=generator)
        self.indices = sorted(order[: chosen.num_videos].tolist())

    def frames(self, index: int) -> Tensor | None:
        """Returns a decoded clip (1, T, C, H, W), uint8, or None if the video fails to decode."""
        sample = self.dataset[0, index]
        if isinstance(sample, Failure):
            show(f"note: {sample.path} is left out: {sample.reason}")
            return None
        return sample.frames

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the index and the network's input (1, C, T, H, W) of each video."""
        for index in self.indices:
            if (frames := self.frames(index)) is not None:
                yield index, self.to_video(frames)


def score_removal(chosen: Chosen, clips: Clips, fills: Sequence[str], against: str | None) -> None:
    """Scores the maps of each clip by removal, and writes the tables and the curves."""
    settings = chosen.settings(fills=list(fills), against=against, machine=machine())
    results = Results(chosen.folder / "faithfulness.json", settings)
    started, number = time.monotonic(), 0
    for index, video in clips:
        if index in results.done:
            continue
        results.add(index, _score_clip(chosen, clips, index, video, fills, against))
        number += 1
        if number == 1:
            left = len(clips.indices) - len(results.done)
            seconds = time.monotonic() - started
            show(
                f"the first clip took {seconds:.1f} seconds; {left} more take about "
                f"{left * seconds / 60:.0f} minutes (fewer: --videos, --method, --maps, --fill)"
            )
    for path in write_removal(results):
        show(path)


def _score_clip(
    chosen: Chosen, clips: Clips, index: int, video: Tensor, fills: Sequence[str],
    against: str | None,
) -> dict[str, Any]:  # fmt: skip
    predictor = chosen.predictor
    generator = torch.Generator().manual_seed(chosen.seed * 1_000_003 + index)
    with torch.no_grad():
        target = int(predictor.model(video)[0].argmax())
    own = chosen.fields(video, target)
    grid = common_grid(own)
    hider = Hider(
        predictor.model,
        video,
        grid,
        target,
        probabilities=predictor.scores,
        against=None if against is None else predictor.class_names.index(against),
        batch_size=max(predictor.config.test.batch_size, 8),
    )
    shuffled = shuffle_test(video, own, lambda x: chosen.fields(x, target), generator)
    fields = {name: cells(field, grid).float() for name, field in own.items()}
    record = score_maps(hider, fields, fills, generator) | {"shuffle": shuffled}
    label = clips.samples.label(index)
    labels = [label] if isinstance(label, int) else [int(k) for k in label]
    right = target in labels
    about = {"target": target, "right": right, "grid": list(grid), "labels": labels}
    return about | record | {"blocks": score_blocks(hider, generator)}


def common_grid(fields: Mapping[str, Field]) -> Grid:
    """Returns the grid that all maps are averaged to: the smallest size along each axis. Maps with
    one position per frame limit only the number of frames."""
    sizes = [field.shape for field in fields.values()]
    spatial = [size for size in sizes if prod(size[1:]) > 1] or sizes
    height, width = (min(size[axis] for size in spatial) for axis in (1, 2))
    return min(size[0] for size in sizes), height, width
