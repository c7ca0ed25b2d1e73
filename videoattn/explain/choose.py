"""Chooses query positions for pictures, and finds the places that most queries look at.

The positions that receive the most attention are often sinks: places in a corner that nearly all
queries look at, whatever happens in the clip. Pictures therefore start from the position that adds
most to the class score, and from the position with the most motion.
"""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from videoattn.attention.maps import GateMap, PairwiseMap, cells
from videoattn.attention.record import MOST_ENTRIES, Query
from videoattn.explain.post_hoc import hires_cam, occlusion
from videoattn.explain.render import cell_center
from videoattn.models import info
from videoattn.types import Frames, Video

MOTION_CELL = 1 / 8  # side of the squares over which motion is averaged / shorter side of the frame


class Chosen(NamedTuple):
    """A query (frame, y, x) in the network's input, a short title, and the reason for the
    choice."""

    query: Query
    title: str
    reason: str


class Summary(NamedTuple):
    """Statistics of a pairwise map, averaged over heads, over all queries that have a position.

    Args:
        received: (P,), the mean weight that each key position receives.
        strongest: (P,), for each key position, the fraction of queries whose strongest key it is.
        top: The largest absolute weight.
    """

    received: Float[Tensor, " P"]
    strongest: Float[Tensor, " P"]
    top: float


def summarize(found: PairwiseMap) -> Summary:
    """Returns the statistics of a map of one clip (with `is_whole`), a few rows at a time."""
    num_queries, num_keys = prod(found.grid_q), prod(found.grid_k)
    num_heads = found.rows.shape[1] if found.factors is None else found.factors.q.shape[1]
    received, strongest, top = torch.zeros(num_keys), torch.zeros(num_keys), 0.0
    for piece in torch.arange(num_queries).split(max(MOST_ENTRIES // (num_keys * num_heads), 1)):
        rows = found.select(piece).weights[0].flatten(1).float()
        received += rows.sum(0)
        strongest += torch.bincount(rows.abs().argmax(1), minlength=num_keys)
        top = max(top, float(rows.abs().max()))
    return Summary(received / max(num_queries, 1), strongest / max(num_queries, 1), top)


def choose_queries(
    model: nn.Module,
    video: Video,
    frames: UInt8[Tensor, "T 3 height width"],
    label: int,
    class_name: str,
    maps: Mapping[str, PairwiseMap | GateMap],
) -> list[Chosen]:
    """Returns the position that adds most to the score of a class, and the one with the most motion
    or, if nothing moves, the one that receives the most attention in the last whole map, if any.

    Args:
        video: The network's input, one clip.
        frames: The same frames, at any resolution.
        label, class_name: The index and the name of the class.
        maps: The recorded maps of the clip, by name.
    """
    chosen = [score_position(model, video, label, class_name)]
    moving = motion_position(frames, (video.shape[2], video.shape[3], video.shape[4]))
    if moving is not None:
        return [*chosen, moving]
    whole = [m for m in maps.values() if isinstance(m, PairwiseMap) and m.is_whole]
    for found in whole[-1:]:  # a still clip
        query = _highest(summarize(found).received.view(found.grid_k), video)
        chosen.append(Chosen(query, "most attention", "it receives the most attention"))
    return chosen


def score_position(model: nn.Module, video: Video, label: int, class_name: str) -> Chosen:
    """Returns the position that adds most to a class's score.

    This is the maximum of HiResCAM if it sums to the score, as with average pooling and one linear
    layer; else that of occlusion, which needs a forward pass for each patch.

    Args:
        video: The network's input, one clip.
    """
    targets = torch.tensor([label], device=video.device)
    found, method = hires_cam(model, video, targets), "HiResCAM"
    if not _sums_to_score(model, video, found, label):
        found, method = occlusion(model, video, targets), "occlusion"
    weights = found.weights[0].float().cpu()
    reason = f"it adds most to the score of {class_name} ({method})"
    return Chosen(_highest(weights, video), "adds most to the score", reason)


def _highest(weights: Float[Tensor, "t h w"], video: Video) -> Query:
    """Returns the center of the cell with the highest weight."""
    grid, clip = (len(weights), *weights.shape[1:]), (video.shape[2], *video.shape[3:])
    ((t, y, x),) = cells(weights.argmax().view(1), grid).tolist()
    center = cell_center((t, y, x), grid, clip)
    return center.frame, int(center.y), int(center.x)


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

    Motion is the absolute change of gray between the previous and the next frame, minus the median
    of the frame (to discount camera motion), clamped at 0 and averaged over small squares.

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
    changes = F.avg_pool2d(change[:, None], side, max(side // 2, 1))[:, 0]
    if float(changes.max()) == 0:
        return None
    index = int(changes.argmax())
    frame, row = index // prod(changes.shape[1:]), index // changes.shape[2] % changes.shape[1]
    y, x = ((cell * max(side // 2, 1) + side / 2) for cell in (row, index % changes.shape[2]))
    pixel = int(y * clip[1] / gray.shape[1]), int(x * clip[2] / gray.shape[2])
    return Chosen((frame + (len(gray) > 2), *pixel), "most motion", "most moves there")
