"""Chooses query positions for pictures, and finds the places that most queries look at.

The positions that receive the most attention are often sinks: places in a corner that nearly all
queries look at, whatever happens in the clip. Pictures therefore start from the position that adds
most to the class score, and from the position with the most motion.
"""

from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from videoattn.attention.maps import GateMap, PairwiseMap, cells
from videoattn.attention.record import MOST_ENTRIES, Query
from videoattn.explain.post_hoc import hires_cam, occlusion
from videoattn.explain.render import cell_center
from videoattn.models import info
from videoattn.types import Frames, Video

SPACE_APART = 0.25  # of the shorter side of the frame
TIME_APART = 0.5  # of the clip
MOTION_CELL = 1 / 8  # of the shorter side: motion is summed over squares of this size


class Chosen(NamedTuple):
    """A query (frame, y, x) in the network's input, a short title, and the reason for the
    choice."""

    query: Query
    title: str
    reason: str


class Summary(NamedTuple):
    """Statistics over all position queries of a map, averaged over heads.

    Args:
        received: (P,), the mean weight that each key position receives.
        strongest: (P,), the fraction of queries whose strongest key it is.
        top: The largest absolute weight.
    """

    received: Float[Tensor, " P"]
    strongest: Float[Tensor, " P"]
    top: float


def summarize(found: PairwiseMap) -> Summary:
    """Returns the summary of a complete map of one clip, computed from a few rows at a time."""
    num_queries, num_keys = prod(found.grid_q), prod(found.grid_k)
    num_heads = found.rows.shape[1] if found.factors is None else found.factors.q.shape[1]
    received, strongest, top = torch.zeros(num_keys), torch.zeros(num_keys), 0.0
    for piece in torch.arange(num_queries).split(max(MOST_ENTRIES // (num_keys * num_heads), 1)):
        rows = found.select(piece).weights[0].flatten(1).float()
        received += rows.sum(0)
        strongest += torch.bincount(rows.abs().argmax(1), minlength=num_keys)
        top = max(top, float(rows.abs().max()))
    return Summary(received / max(num_queries, 1), strongest / max(num_queries, 1), top)


def score_position(model: nn.Module, video: Video, label: int, class_name: str) -> Chosen:
    """Returns the position that adds most to a class's score.

    Uses the maximum of HiResCAM if the map sums to the score, as it does for a mean and one linear
    layer. Otherwise uses the maximum of occlusion, which needs a forward pass for each patch.

    Args:
        video: The network's input, one clip.
    """
    targets = torch.tensor([label], device=video.device)
    found, method = hires_cam(model, video, targets), "HiResCAM"
    if not _sums_to_score(model, video, found, label):
        found, method = occlusion(model, video, targets), "occlusion"
    weights = found.weights[0].float().cpu()
    (t, y, x), (frames, height, width) = weights.shape, video.shape[2:]
    (cell,) = cells(weights.argmax().view(1), (t, y, x)).tolist()
    center = cell_center(cell, (t, y, x), (frames, height, width))
    query = (center.frame, int(center.y), int(center.x))
    return Chosen(
        query, "adds most to the score", f"it adds most to the score of {class_name} ({method})"
    )


def _sums_to_score(model: nn.Module, video: Video, found: GateMap, label: int) -> bool:
    classifier = model.get_submodule(info(model).classifier)
    if not isinstance(classifier, nn.Linear):
        return False
    with torch.no_grad():
        score = model(video)[0, label]
    bias = 0.0 if classifier.bias is None else classifier.bias[label]
    return bool(torch.isclose(found.weights[0].sum() + bias, score, rtol=1e-2, atol=1e-2))


def motion_position(frames: Frames, clip: tuple[int, int, int]) -> Chosen | None:
    """Returns the position with the most motion, or None if nothing moves.

    Motion is the absolute change of gray between the previous and the next frame, minus the frame's
    median change (which removes camera motion), summed over small squares.

    Args:
        frames: The network's clip, at any resolution.
        clip: (T, H, W) of the network's input.
    """
    gray = frames.float().mean(1)
    gap = 2 if len(gray) > 2 else 1
    if len(gray) <= gap:
        return None
    change = (gray[gap:] - gray[:-gap]).abs()
    change = (change - change.flatten(1).median(1).values[:, None, None]).clamp_min(0)
    side = max(round(MOTION_CELL * min(gray.shape[1:])), 1)
    sums = F.avg_pool2d(change[:, None], side, max(side // 2, 1))[:, 0]
    if float(sums.max()) == 0:
        return None
    index = int(sums.argmax())
    frame, row = index // prod(sums.shape[1:]), index // sums.shape[2] % sums.shape[1]
    y, x = ((cell * max(side // 2, 1) + side / 2) for cell in (row, index % sums.shape[2]))
    pixel = int(y * clip[1] / gray.shape[1]), int(x * clip[2] / gray.shape[2])
    return Chosen((frame + (len(gray) > 2), *pixel), "most motion", "most moves there")


def choose_queries(
    attention_map: PairwiseMap, clip: tuple[int, int, int], *, count: int = 3, sample: int = 0
) -> list[Query]:
    """Returns the positions (frame, y, x) of a clip (T, H, W) with the most attention, sorted.

    Each is the center pixel of a key cell. Greedy non-maximum suppression keeps them a quarter of
    the frame or half of the clip apart, so that their pictures differ. A small grid may have fewer
    than `count`.

    Raises:
        ValueError: If the map was recorded without `received`.
    """
    if attention_map.received is None:
        raise ValueError(
            "attention map: the attention that each position receives was not recorded; use "
            "record_attention(model, received=True), or choose a query"
        )
    received = attention_map.received[sample].flatten()
    reach = SPACE_APART * min(clip[1], clip[2])
    sizes = (TIME_APART * clip[0], reach, reach)
    chosen: list[Query] = []
    order = torch.argsort(received, descending=True, stable=True)
    for cell in cells(order, attention_map.grid_k).tolist():
        center = cell_center(cell, attention_map.grid_k, clip)
        candidate = (center.frame, int(center.y), int(center.x))
        gaps = [
            sum(((a - b) / size) ** 2 for a, b, size in zip(candidate, other, sizes, strict=True))
            for other in chosen
        ]
        if min(gaps, default=1.0) >= 1:
            chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen
