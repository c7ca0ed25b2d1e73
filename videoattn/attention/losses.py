"""Collects the auxiliary losses of attention blocks.

Blocks keep them after a forward pass in training mode. The caller collects and weights them:

    logits = model(video)
    losses = auxiliary_losses(model)  # {"interaction": ..., "diversity": ...}
    loss = cross_entropy(logits, labels) + sum(weights[name] * x for name, x in losses.items())
"""

from torch import Tensor, nn


class HeldLosses(dict[str, Tensor]):
    """The named losses of one forward pass, as means over its samples.

    They belong to the graph of that pass: a copy or a checkpoint of the module has none.
    """

    def __deepcopy__(self, memo: dict[int, object]) -> "HeldLosses":
        return HeldLosses()

    def __reduce__(self) -> tuple[type["HeldLosses"], tuple[()]]:
        return HeldLosses, ()


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Returns the losses of the last training-mode forward pass by name, and removes them from the
    blocks. Losses with the same name, from several blocks, are added."""
    found: dict[str, Tensor] = {}
    for module in model.modules():
        held = getattr(module, "losses", None)
        if isinstance(held, HeldLosses):
            for name, loss in held.items():
                found[name] = found[name] + loss if name in found else loss
            held.clear()
    return found
