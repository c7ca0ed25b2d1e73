"""Exchanges the global vectors of two clips in Learn to pay attention (Jetley et al., ICLR 2018).

The weight of a position comes from its local features and the global vector g of the clip. With the
g of another clip, the weights show which positions the content of the other clip selects.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videoattn.attention.blocks.pay_attention import LearnToPay, LevelAttention
from videoattn.attention.maps import GateMap
from videoattn.attention.record import recordable_blocks
from videoattn.types import Logits, Video


class Seen(NamedTuple):
    """The results of two clips: logits (2, K), and poolings (2, 1, T, H, W) by level."""

    logits: Logits
    maps: dict[str, GateMap]


def swap_global_vectors(model: nn.Module, first: Video, second: Video) -> tuple[Seen, Seen]:
    """Runs a network on two clips (1, C, T, H, W), with their own and exchanged global vectors.

    The maps have the names that `record_attention` gives them.

    Returns:
        The results with their own vectors, and the results with exchanged vectors.

    Raises:
        ValueError: If the network is in training mode or has no Learn to pay attention, or if its
            weights do not depend on the vector (pc with a softmax, see pay_attention.py).
    """
    if model.training:
        raise ValueError("the network is in training mode, which mixes clips; call model.eval()")
    clips = torch.cat([first, second])
    own, swapped = (_run(model, clips, swap=swap) for swap in (False, True))
    if not own.maps:
        raise ValueError(
            f"swap: {type(model).__name__} has no Learn to pay attention (pay_attention), whose "
            "global vector can be exchanged"
        )
    pairs = [(found.weights, swapped.maps[name].weights) for name, found in own.maps.items()]
    if all(torch.allclose(before, after, rtol=1e-3, atol=0) for before, after in pairs):
        raise ValueError(
            "swap: the weights of this form of pay_attention do not depend on the global vector; "
            "train one with compatibility=dp or normalizer=sigmoid"
        )
    return own, swapped


@torch.no_grad()
def _run(model: nn.Module, clips: Video, *, swap: bool) -> Seen:
    maps: dict[str, GateMap] = {}

    def read(name: str, level: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        assert isinstance(level, LevelAttention)
        local, g = inputs
        g = g.flip(0) if swap else g
        weights = level.weights(local, g).unsqueeze(1).float().cpu()
        maps[name] = GateMap("pooling", weights, normalized=level.normalizer == "softmax")
        return local, g

    with ExitStack() as hooks:
        for name, head in recordable_blocks(model).items():
            for index, level in enumerate(head.levels if isinstance(head, LearnToPay) else ()):
                hook = partial(read, f"{name}.{index}")
                hooks.enter_context(level.register_forward_pre_hook(hook))
        return Seen(model(clips), maps)
