"""Networks by name (`table`), and access to their structure, features and head."""

from torch import Tensor, nn

from videoattn.attention.capture import capture
from videoattn.models import libraries
from videoattn.types import Logits, ModelInfo, Video, own_info


def info(model: nn.Module) -> ModelInfo:
    """Returns the structure of a network: its `info`, or that of its type for other libraries.

    Raises:
        ValueError: If the network has no `info` and an unknown type.
    """
    found = own_info(model) or libraries.info(model)
    if found is None:
        raise ValueError(
            f"the structure of {type(model).__name__} is unknown; name a layer, or give the "
            "network an attribute `info` (videoattn.types.ModelInfo)"
        )
    return found


def features(model: nn.Module, x: Tensor) -> Video:
    """Returns the features (N, C, T', H', W') that the network's head reads.

    The forward pass ends there. Special tokens of a transformer are left out.

    Raises:
        ValueError: If the structure of the network is unknown.
    """
    structure = info(model)
    with capture(model, [structure.features], stop=True) as outputs:
        model(x)
    return as_video(outputs[structure.features], structure, x)


def as_video(features: Tensor, structure: ModelInfo, x: Tensor) -> Video:
    """Returns a layer's output as (N, C, T', H', W').

    Args:
        features: (N, C, T', H', W'), images (N·T', C, H', W'), or tokens (N, P, C).
        structure: The structure of the network.
        x: The network's input, in the layout `structure.axes`.
    """
    if features.ndim == 3 and structure.token_grid is not None:
        clip = x.transpose(1, 2) if structure.axes == "NTCHW" else x
        frames, height, width = clip.shape[2:]
        tokens = features[:, len(structure.special_tokens) :]
        return tokens.transpose(1, 2).unflatten(2, structure.token_grid((frames, height, width)))
    if features.ndim == 4:
        return features.unflatten(0, (len(x), -1)).transpose(1, 2)
    return features


def head(model: nn.Module, features: Video) -> Logits:
    """Returns the logits (N, K) for features that `features` returned.

    Raises:
        ValueError: If the network has no head that can run alone.
    """
    own = getattr(model, "forward_head", None)
    if own is not None and own_info(model) is not None:
        return own(features)
    found = libraries.head(model, features)
    if found is None:
        raise ValueError(
            f"the head of {type(model).__name__} cannot run alone; give it a method "
            "`forward_head(features)`"
        )
    return found
