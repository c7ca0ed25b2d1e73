"""Tests a run with the gates of other clips: which kind of gate do its answers need?

    videoattn train configs/task_match.yaml name=cbam model.attention.name=cbam ...
    python tools/swap_gates.py runs/cbam

A gate multiplies features by weights. Here, all gates of one kind take the weights of another test
clip, and everything else stays the clip's own. If as many answers are right, the network does not
need what these weights know about the clip. One view (the first) of each test video.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from videoattn.attention.blocks.gates import Gate
from videoattn.cli.arguments import Overrides
from videoattn.recipe.console import markdown_table
from videoattn.recipe.data import make_samples
from videoattn.recipe.memory import remembered_data
from videoattn.recipe.run import load

BATCH_SIZE = 50


def swap_gates(
    run: Annotated[Path, typer.Argument(help="A run with gates.")],
    overrides: Overrides = None,
) -> None:
    """Print the accuracy with the gates of each kind taken from another clip."""
    data = remembered_data(run)
    predictor = load(run, "cpu", overrides=overrides or (), data=data)
    samples = make_samples(predictor.config.data, "test")
    # Neighbors in a list have the same class; a random order mixes classes.
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    labels = torch.tensor([int(samples.labels[index]) for index in order])
    if (labels < 0).any():
        raise ValueError(f"{run}: need test videos with one known class each")
    videos = torch.cat([predictor.preprocess(samples.path(index))[:1] for index in order])
    kinds = gates_by_kind(predictor.model, videos[:1])
    if not kinds:
        raise ValueError(f"{run} has no gates; choose a run with cbam, squeeze_excite or another")
    rows: list[tuple[str, int, str]] = []
    for kind, gates in {"none": [], **kinds}.items():
        with changed(gates, of_another_clip):
            right = (answers(predictor.model, videos) == labels).double().mean()
        rows.append((kind, len(gates), f"{100 * right:.1f} %"))
    print(markdown_table(("gates of another clip", "number", "accuracy"), rows), end="")
    print(f"\n{len(labels)} test videos, the first view of each")


def gates_by_kind(model: nn.Module, video: Tensor) -> dict[str, list[Gate]]:
    """Returns the gates of a network by what their weights (N, C, T, H, W) differ over."""
    found: dict[str, list[Gate]] = defaultdict(list)

    def note(gate: Gate, weights: Tensor) -> Tensor:
        named = zip(("channels", "frames", "rows", "columns"), weights.shape[1:], strict=True)
        kind = found[" x ".join(name for name, size in named if size > 1) or "clip"]
        if gate not in kind:  # a network may use it twice
            kind.append(gate)
        return weights

    with changed([module for module in model.modules() if isinstance(module, Gate)], note):
        answers(model, video)
    return dict(found)


def of_another_clip(gate: Gate, weights: Tensor) -> Tensor:
    """Returns the weights of the clip before, in the batch; for the first, of the last."""
    return weights.roll(1, 0)


@contextmanager
def changed(gates: Sequence[Gate], change: Callable[[Gate, Tensor], Tensor]) -> Iterator[None]:
    """Replaces the weights w of gates by `change(gate, w)`."""

    def weights(gate: Gate, original: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return change(gate, original(x))

    for gate in gates:
        setattr(gate, "weights", partial(weights, gate, gate.weights))  # noqa: B010
    try:
        yield
    finally:
        for gate in gates:
            delattr(gate, "weights")


def answers(model: nn.Module, videos: Tensor) -> Tensor:
    """Returns the predicted classes (N,)."""
    with torch.inference_mode():
        batches = videos.tensor_split(-(-len(videos) // BATCH_SIZE))  # none of them is one clip
        return torch.cat([model(batch).argmax(1) for batch in batches])


if __name__ == "__main__":
    typer.run(swap_gates)
