"""Computes learning rates as pure functions of the step; checkpoints store no schedule.

A step is one update of the weights, counted from 0 over the whole run.
"""

import math
from collections.abc import Sequence


def cosine(
    step: int, *, num_steps: int, base: float, warmup_steps: int = 0, final: float = 0.0
) -> float:
    """Returns the rate at `step`: linear warm-up to `base`, then half a cosine down to `final`."""
    _check(step, num_steps=num_steps, warmup_steps=warmup_steps)
    if step < warmup_steps:
        return _warmup(step, warmup_steps, base)
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return final + (base - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def one_cycle(step: int, *, num_steps: int, peak: float, warmup_share: float = 0.3) -> float:
    """Returns the rate at `step`: half a cosine up to `peak`, then half a cosine down.

    Equals `torch.optim.lr_scheduler.OneCycleLR` with its defaults. The rate starts at peak / 25,
    reaches peak after `warmup_share` of the run, and ends at peak / 25 / 10,000.
    """
    _check(step, num_steps=num_steps)
    if not 0.0 < warmup_share < 1.0:
        raise ValueError(f"warmup_share: got {warmup_share}; need a fraction between 0 and 1")
    start = peak / 25.0
    final = start / 1e4
    top = warmup_share * num_steps - 1.0
    if step <= top:
        return _half_cosine(start, peak, step / max(top, 1.0))
    return _half_cosine(peak, final, min(1.0, (step - top) / max(num_steps - 1.0 - top, 1e-12)))


def multistep(
    step: int, *, milestones: Sequence[int], base: float, gamma: float = 0.1, warmup_steps: int = 0
) -> float:
    """Returns the rate at `step`: linear warm-up to `base`, times `gamma` after each milestone."""
    _check(step, warmup_steps=warmup_steps)
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones: got {list(milestones)}; need increasing steps")
    if step < warmup_steps:
        return _warmup(step, warmup_steps, base)
    return base * gamma ** sum(step >= milestone for milestone in milestones)


def _warmup(step: int, warmup_steps: int, base: float) -> float:
    # Divided by one more than the number of steps, so that the first step does not have the rate 0,
    # and `base` does not occur twice.
    return base * (step + 1) / (warmup_steps + 1)


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _check(step: int, *, num_steps: int = 1, warmup_steps: int = 0) -> None:
    if step < 0:
        raise ValueError(f"step: got {step}; need 0 or more")
    if num_steps < 1:
        raise ValueError(f"num_steps: got {num_steps}; need at least 1")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps: got {warmup_steps}; need 0 (no warm-up) or more")
