"""Compares maps before and after the parameters of a network are drawn again (Adebayo et al.,
Sanity Checks for Saliency Maps, NeurIPS 2018, arXiv 1810.03292).

A map that looks the same for random parameters does not explain what the network has learned.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import nn

from videoattn.explain.faithful.score import Field
from videoattn.explain.faithful.statistics import NUM_RESAMPLES, middle, spearman
from videoattn.models import info

STEM = "stem"
MODES = ("cascade", "independent")


def stages_from_the_head(model: nn.Module) -> dict[str, list[str]]:
    """Returns the names of the parameters and buffers of each stage, the head first.

    What belongs neither to a stage nor to the classifier is the last group, "stem".
    """
    structure = info(model)
    groups: dict[str, tuple[str, ...]] = {"head": (structure.classifier,)}
    stages = list(structure.stages.items())[::-1]
    groups |= {name: (f"{name}.", *blocks) for name, blocks in stages}
    found: dict[str, list[str]] = {name: [] for name in (*groups, STEM)}
    for key in model.state_dict():
        owner = (name for name, prefixes in groups.items() if key.startswith(prefixes))
        found[next(owner, STEM)].append(key)
    return {name: keys for name, keys in found.items() if keys}


def randomized(model: nn.Module, fresh: nn.Module, mode: str) -> Iterator[tuple[str, nn.Module]]:
    """Yields copies of a network in which stages have the parameters of `fresh`.

    Args:
        model: The trained network, which does not change.
        fresh: The same network with its own initialization, for another seed.
        mode: "cascade" from the head down, cumulative; "independent" one stage at a time.

    Yields:
        The name of the stage, and the network in eval mode. The batch norms that were replaced have
        the running statistics of `fresh`: recompute them, or the network returns constants.
    """
    start, drawn = model.state_dict(), fresh.state_dict()
    replaced: list[str] = []
    for stage, keys in stages_from_the_head(model).items():
        replaced = replaced + keys if mode == "cascade" else keys
        changed = copy.deepcopy(model)
        changed.load_state_dict(start | {key: drawn[key] for key in replaced})
        yield stage, changed.eval()


def similarity(before: Sequence[Field], after: Sequence[Field]) -> tuple[list[float], ...]:
    """Returns three lists with Spearman's rho between each clip's maps before and after: of the
    maps, of their absolute values, and of the maps minus their mean (`own`)."""
    pairs = (before, after), map(_absolute, (before, after)), map(own, (before, after))
    return tuple([spearman(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs)


def own(fields: Sequence[Field]) -> list[Field]:
    """Returns each clip's map minus the mean map over the clips, which is what the maps share."""
    mean = torch.stack(list(fields)).double().mean(0)
    rounding = 1e-12 * float(mean.abs().max())  # of equal maps
    return [nn.functional.hardshrink(field - mean, rounding) for field in fields]


def _absolute(fields: Sequence[Field]) -> list[Field]:
    return [field.abs() for field in fields]


def unrelated(fields: Sequence[Field], seed: int = 0) -> tuple[float, float]:
    """Returns the middle 95 % of the mean of Spearman's rho between the maps of unrelated clips.

    Each of 1,000 resamples puts the clips in a random cyclic order and averages rho over neighbors,
    so that the mean has as many terms as that of a map before and after. Maps of different clips
    are similar, too, for example if all are highest in the middle.

    Raises:
        ValueError: If there are fewer than two clips.
    """
    count = len(fields)
    if count < 2:
        raise ValueError(f"maps of unrelated clips: got {count} clip; need two or more")
    table = torch.eye(count, dtype=torch.float64)
    for i, j in combinations(range(count), 2):
        table[i, j] = table[j, i] = spearman(fields[i], fields[j])
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(NUM_RESAMPLES)]
    means = torch.stack([table[order, order.roll(1)].mean() for order in orders])
    return middle(means)
