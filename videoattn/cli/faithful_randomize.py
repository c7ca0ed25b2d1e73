"""Compares maps before and after the parameters of a network are drawn again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from videoattn.cli.env import machine
from videoattn.cli.faithful import Chosen, Clips
from videoattn.cli.faithful_report import Results, save_figure
from videoattn.engine.parallel import Parallel
from videoattn.engine.precise import PreciseBatchNorm
from videoattn.explain.faithful.randomize import MODES, randomized, similarity, unrelated
from videoattn.explain.faithful.score import Field, center_map
from videoattn.explain.faithful.statistics import bootstrap
from videoattn.files import write_text
from videoattn.recipe.console import markdown_table, show
from videoattn.recipe.model import make_model
from videoattn.recipe.run import Predictor, load
from videoattn.types import Batch

NUM_SEEDS = 3
NUM_NORM_CLIPS = 32
CENTER = "center"
SIMILARITIES = ("signed", "absolute", "own")
"""Correlations of maps before and after: as they are, absolute, and minus the mean over clips."""


def compare_randomized(chosen: Chosen, clips: Clips, against: str | None) -> None:
    """Compares maps, and writes randomization.json, randomization.md and randomize.png.

    Args:
        against: Another run of the same network, such as one trained on wrong labels.
    """
    predictor = chosen.predictor
    other = None if against is None else _other(predictor, against)
    settings = chosen.settings(seeds=NUM_SEEDS, scores=[*SIMILARITIES], machine=machine())
    results = Results(chosen.folder / "randomization.json", settings)
    videos = [video for _, video in clips]
    with torch.no_grad():
        targets = [int(predictor.model(video)[0].argmax()) for video in videos]

    def maps_of(model: nn.Module) -> dict[str, list[Field]]:
        # Not averaged, because guided backpropagation keeps edges, which are finer than cells.
        found = [
            chosen.fields(x, k, model, most_cells=x[0, 0].numel())
            for x, k in zip(videos, targets, strict=True)
        ]
        named = {name: [fields[name] for fields in found] for name in found[0]}
        first = next(iter(named.values()))[0]
        grid = len(first), first.shape[1], first.shape[2]
        return named | {CENTER: [center_map(grid)] * len(videos)}

    before = maps_of(predictor.model)
    bands = {name: unrelated(fields) for name, fields in before.items()}
    after = {} if other is None else maps_of(other.model)
    others = {name: similarity(before[name], fields)[0] for name, fields in after.items()}
    frames = [clips.frames(index) for index in clips.indices[:NUM_NORM_CLIPS]]
    decoded = [clip for clip in frames if clip is not None]
    norms = PreciseBatchNorm(_Batches(decoded), NUM_NORM_CLIPS)
    for seed in range(NUM_SEEDS):
        if seed in results.done:
            continue
        torch.manual_seed(chosen.seed * NUM_SEEDS + seed)
        fresh = make_model(predictor.config.model, len(predictor.class_names)).to(predictor.device)
        row: dict[str, dict[str, dict[str, tuple[list[float], ...]]]] = {}
        for mode in MODES:
            row[mode] = {}
            for stage, changed in randomized(predictor.model, fresh, mode):
                norms.recompute(changed, clips.to_video, "float32", Parallel())
                after = maps_of(changed)
                row[mode][stage] = {n: similarity(before[n], after[n]) for n in before}
                show(f"seed {seed}, {mode}, {stage}: {len(videos)} clips")
        results.add(seed, row)
    with results.as_tables() as rows:
        _write(results, rows, bands, others)


def _other(predictor: Predictor, run: str) -> Predictor:
    found = load(run, predictor.device)
    same = found.model.state_dict().keys() == predictor.model.state_dict().keys()
    if not same or found.class_names != predictor.class_names:
        raise ValueError(
            f"--against: {run} has another network or other classes; with --randomize, name a run "
            "of the same recipe"
        )
    return found


class _Batches:
    """A loader of decoded clips in batches of eight."""

    def __init__(self, frames: list[Tensor]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return -(-len(self.frames) // 8)

    def epoch(self, epoch: int, skip_batches: int = 0) -> Iterator[Batch]:
        for start in range(0, len(self.frames), 8):
            part = torch.stack(self.frames[start : start + 8])
            yield Batch(part, torch.zeros(len(part)).long(), torch.arange(len(part)))


def _write(
    results: Results,
    rows: Sequence[Mapping[str, Any]],
    bands: Mapping[str, tuple[float, float]],
    others: Mapping[str, list[float]],
) -> None:
    """Writes the results. A map is insensitive if its interval lies above its band."""
    stages = list(rows[0]["cascade"])
    columns = ["map", f"head and {stages[1]} redrawn", "all stages redrawn", "unrelated clips"]
    columns += ["verdict", "absolute values", "minus the mean map"]
    table, verdicts, scores = [], {}, {}
    for name, (low, high) in bands.items():
        upper, last = (
            torch.tensor([row["cascade"][stage][name] for row in rows]).double().mean(0)
            for stage in (stages[1], stages[-1])
        )
        found = dict(zip(SIMILARITIES, map(bootstrap, last), strict=True))
        scores[name] = found | {"upper": bootstrap(upper[0])}
        verdicts[name] = "insensitive" if found["signed"].low >= high - 1e-6 else "sensitive"
        cells = [name, scores[name]["upper"], found["signed"], f"{low:z.2f} to {high:z.2f}"]
        cells += [verdicts[name], found["absolute"], found["own"]]
        if others:
            cells.append(bootstrap(torch.tensor(others[name]).double()))
        table.append(cells)
    if others:
        columns.append("the run of --against")
    text = f"# Randomization\n\n{results.header()}\n{markdown_table(columns, table)}"
    results.write(table=scores, bands=bands, verdicts=verdicts, against=others)
    write_text(results.path.with_suffix(".md"), text)
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for mode, axes in zip(MODES, figure.subplots(1, 2), strict=True):
        for name, (low, high) in bands.items():
            means = [torch.tensor([r[mode][s][name][0] for r in rows]).mean() for s in stages]
            (line,) = axes.plot(stages, means, label=name)
            axes.axhspan(low, high, color=line.get_color(), alpha=0.05)
        axes.set(title=mode, ylabel="rank correlation with the map before", ylim=(-1, 1.05))
    axes.legend(fontsize=8)
    path = results.path.with_name("randomize.png")
    save_figure(path, figure)
    for written in (results.path, results.path.with_suffix(".md"), path):
        show(written)
