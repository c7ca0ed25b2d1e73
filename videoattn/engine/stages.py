"""Networks whose parts are trained in stages, one after another, in one run.

The stage of an epoch and its learning rate are pure functions, so a checkpoint stores neither.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Staged(Protocol):
    """A network that trains one of its parts in each stage.

    `set_stage(i)`, i from 0, sets `requires_grad` for the parameters of that part only. In training
    mode the other parts stay in evaluation mode, and `forward` returns logits to which every
    parameter of the part contributes.
    """

    num_stages: int

    def set_stage(self, stage: int) -> None: ...


def num_stages(model: nn.Module) -> int:
    """Returns the number of stages of a network; 1 for most."""
    return model.num_stages if isinstance(model, Staged) else 1


def split_epochs(num_epochs: int, stages: int, given: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the number of epochs of each stage: those given, or equal shares.

    The first stages get one epoch more if the shares cannot be equal.

    Raises:
        ValueError: If there are fewer epochs than stages, or the given numbers do not fit.
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
            f"stage_epochs: {list(given)} is only for networks that are trained in stages; this "
            "one is not, so leave it out"
        )
    if len(given) != stages or min(given) < 1 or sum(given) != num_epochs:
        raise ValueError(
            f"stage_epochs: {list(given)} must be {stages} numbers, 1 or more, for the network's "
            f"{stages} stages, and {num_epochs} (num_epochs) together; leave it out for equal parts"
        )
    return tuple(given)


def stage_of(step: int, lengths: Sequence[int]) -> int:
    """Returns the stage (from 0) of a step or an epoch, given the length of each stage."""
    return min(bisect_right(list(accumulate(lengths)), step), len(lengths) - 1)


def restart_schedule(
    schedule: Callable[[int], Callable[[int], float]], lengths: Sequence[int]
) -> Callable[[int], float]:
    """Returns a learning-rate function that restarts in each stage.

    Args:
        schedule: Returns the learning-rate function of a stage with this many steps.
        lengths: The number of steps of each stage.
    """
    schedules = [schedule(length) for length in lengths]

    def lr_at(step: int) -> float:
        stage = stage_of(step, lengths)
        return schedules[stage](step - sum(lengths[:stage]))

    return lr_at
