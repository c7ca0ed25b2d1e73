"""Loads 2-D weights into 3-D networks, so that I3D, C2D and Slow can start from ImageNet ResNets.

Carreira and Zisserman, "Quo Vadis, Action Recognition?" (https://arxiv.org/abs/1705.07750),
section 2.4, repeat a kernel over time and divide it by its length, so that a video of one repeated
frame has the features of that frame. Feichtenhofer et al. (https://arxiv.org/abs/1611.02155) put
the kernel in the center frame: every video then has the features of its frames.
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from videoattn.errors import first_few

Method = Literal["mean", "centre"]


def inflate_weight(
    weight: Float[Tensor, "O I kH kW"], *, num_frames: int, method: Method = "mean"
) -> Float[Tensor, "O I kT kH kW"]:
    """Returns a 3-D kernel: repeated and divided ("mean"), or zero except in the center frame."""
    frames = weight.unsqueeze(2)
    if method == "mean":
        return frames.expand(-1, -1, num_frames, -1, -1) / num_frames
    inflated = frames.new_zeros(*weight.shape[:2], num_frames, *weight.shape[2:])
    inflated[:, :, num_frames // 2] = weight
    return inflated


def load_inflated(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    method: Method = "mean",
    head: str = "fc.",
) -> list[str]:
    """Loads weights by name, inflating 2-D weights of 3-D layers.

    A classifier with another number of classes is left out.

    Args:
        method: "mean" or "centre"; see above.
        head: Prefix of the classifier's names.

    Returns:
        Names of the parameters that were not loaded: inserted blocks, and such a classifier.

    Raises:
        ValueError: If the weights have a name that the network lacks, or a shape that cannot be
            inflated.
    """
    own = model.state_dict()
    unknown = [name for name in state_dict if name not in own and not name.startswith(head)]
    if unknown:
        raise ValueError(
            f"weights: {len(unknown)} names are not in {type(model).__name__}: "
            f"{first_few(unknown)}; its first names are {', '.join(list(own)[:5])}"
        )
    ready: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if name.startswith(head) and (name not in own or own[name].shape != value.shape):
            continue
        if value.ndim == 4 and own[name].ndim == 5:
            value = inflate_weight(value, num_frames=own[name].shape[2], method=method)
        if value.shape != own[name].shape:
            raise ValueError(
                f"weights: {name} has shape {tuple(value.shape)} after inflation, "
                f"{type(model).__name__} needs {tuple(own[name].shape)}"
            )
        ready[name] = value
    return list(model.load_state_dict(ready, strict=False).missing_keys)
