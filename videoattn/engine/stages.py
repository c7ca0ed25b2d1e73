"""Networks that are trained in stages, one after the other, in one run.

Which stage an epoch belongs to, and the learning rate within it, are pure functions: there is
nothing to store, nothing to restore.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Staged(Protocol):
    """A network of which each stage trains a part.

    `set_stage(i)`, i from 0, leaves only that part with `requires_grad`; in training mode the rest
    stays in evaluation mode, and the logits are the stage's, of which every parameter of the part
    has a gradient.
    """

    num_stages: int

    def set_stage(self, stage: int) -> None: ...


def num_stages(model: nn.Module) -> int:
    return model.num_stages if isinstance(model, Staged) else 1


def split_epochs(num_epochs: int, stages: int, given: Sequence[int] = ()) -> tuple[int, ...]:
    """The epochs of each stage: those given, or equal parts, of which the first may be one longer.

    Raises:
        ValueError: fewer epochs than stages; given ones that are not one number, 1 or more, for
            each stage, or not `num_epochs` together; given ones where there are no stages.
    """
    if not given:
        if num_epochs < stages:
            raise ValueError(
                f"num_epochs: {num_epochs} are too few for a network that is trained in {stages} "
                "stages; give each at least one"
            )
        return tuple(num_epochs // stages + (i < num_epochs % stages) for i in range(stages))
    if stages == 1 and len(given) > 1:
        raise ValueError(
            f"stage_epochs: {list(given)} is for networks that are trained in stages (attention "
            "hard_crop), and this is none; leave it out"
        )
    if len(given) != stages or min(given) < 1 or sum(given) != num_epochs:
        raise ValueError(
            f"stage_epochs: {list(given)} must be {stages} numbers, 1 or more, for the network's "
            f"{stages} stages, and {num_epochs} (num_epochs) together; leave it out for equal parts"
        )
    return tuple(given)


def stage_of(step: int, lengths: Sequence[int]) -> int:
    """The stage (from 0) of a step, or of an epoch, where stages have such lengths."""
    return min(bisect_right(list(accumulate(lengths)), step), len(lengths) - 1)


def restarting(
    schedule: Callable[[int], Callable[[int], float]], lengths: Sequence[int]
) -> Callable[[int], float]:
    """A learning rate that starts anew in each stage: `schedule(length)` is one stage's, of that
    many steps."""
    schedules = [schedule(length) for length in lengths]

    def lr_at(step: int) -> float:
        stage = stage_of(step, lengths)
        return schedules[stage](step - sum(lengths[:stage]))

    return lr_at
