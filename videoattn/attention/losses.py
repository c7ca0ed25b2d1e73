"""Losses that attention blocks make beside the classification's: held by the block, collected by
name, weighted by whoever trains.

    logits = model(video)                      # training mode: blocks leave their losses behind
    losses = auxiliary_losses(model)           # {"interaction": ..., "diversity": ...}
    loss = cross_entropy(logits, labels) + sum(weights[name] * x for name, x in losses.items())
"""

from torch import Tensor, nn


class HeldLosses(dict[str, Tensor]):
    """Named scalars of one forward pass, means over its samples. They belong to that pass's graph,
    not to the module: a copy of the module, or a file of it, holds none."""

    def __deepcopy__(self, memo: dict[int, object]) -> "HeldLosses":
        return HeldLosses()

    def __reduce__(self) -> tuple[type["HeldLosses"], tuple[()]]:
        return HeldLosses, ()


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """What the blocks of the model hold since the last training-mode forward pass, by name; they
    hold nothing afterwards. Losses of one name, from several blocks, are added."""
    found: dict[str, Tensor] = {}
    for module in model.modules():
        held = getattr(module, "losses", None)
        if isinstance(held, HeldLosses):
            for name, loss in held.items():
                found[name] = found[name] + loss if name in found else loss
            held.clear()
    return found
