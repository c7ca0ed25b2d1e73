"""Puts an attention block behind a named child of any backbone, without renaming a parameter."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from videoattn.types import Video


class VideoView(nn.Module):
    """Shows a 2-D backbone's (N·T, C, H, W) features to a video block as (N, C, T, H, W).

    num_frames: T, the number of consecutive images that are one clip. A `TSN` sets it to the number
        of segments that it was given; elsewhere it is what `insert_attention` was told.
    """

    def __init__(self, block: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.block = block
        self.num_frames = num_frames

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[0] % self.num_frames:
            raise ValueError(
                f"{images.shape[0]} images are not a whole number of clips of {self.num_frames} "
                "frames; pass clips whole, or set num_frames"
            )
        video: Video = images.unflatten(0, (-1, self.num_frames)).transpose(1, 2)
        return self.block(video).transpose(1, 2).flatten(0, 1)


class _Seen(Exception):
    """Every place has been reached: the rest of the forward pass tells nothing more."""


def insert_attention(
    model: nn.Module,
    make_block: Callable[[int], nn.Module],
    after: Sequence[str],
    *,
    name: str = "attention",
    num_frames: int = 1,
) -> list[str]:
    """Adds `make_block(channels)` behind each child named in `after`; returns the new names.

    The child `layer2.1` of an `nn.Sequential` (or `nn.ModuleList`) gets a neighbour
    `layer2.1_<name>` that runs right after it; no existing key of the state dict changes. Channels
    come from a pass that computes shapes only. Where features are (N·T, C, H, W), as in 2-D
    backbones, the block is shown clips of `num_frames` images through a `VideoView`.

    Raises:
        ValueError: a name that is no such child (the message lists those that exist), or one that
            already has a block of this name.
    """
    places = insertion_places(model)
    for place in after:
        if place not in places:
            near = get_close_matches(place, places, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"cannot insert after {place!r}{hint}; the places are {', '.join(places)}"
            )
    shapes = _output_shapes(model, after)
    inserted = []
    for place in after:
        block = make_block(shapes[place][1])
        if len(shapes[place]) == 4:
            block = VideoView(block, num_frames)
        parent_name, _, child = place.rpartition(".")
        _insert_behind(model.get_submodule(parent_name), child, f"{child}_{name}", block)
        inserted.append(f"{place}_{name}")
    return inserted


def insertion_places(model: nn.Module) -> list[str]:
    """Names of the children that a block can be put behind: what an `nn.Sequential` or an
    `nn.ModuleList` runs one after the other, such as the residual blocks of a stage. Containers of
    single layers only (a shortcut's convolution and norm) and of other containers are left out."""
    places: list[str] = []
    for path, module in model.named_modules():
        children = dict(module.named_children())
        holds_blocks = any(
            list(child.children()) and not isinstance(child, nn.Sequential | nn.ModuleList)
            for child in children.values()
        )
        if isinstance(module, nn.Sequential | nn.ModuleList) and holds_blocks:
            places += [f"{path}.{name}" if path else name for name in children]
    return places


def _output_shapes(model: nn.Module, places: Sequence[str]) -> dict[str, torch.Size]:
    """The output shape of each place for an example input, computed on the meta device."""
    shadow = copy.deepcopy(model).to("meta").eval()
    shapes: dict[str, torch.Size] = {}

    def remember(place: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            shapes[place] = output.shape
            if len(shapes) == len(set(places)):
                raise _Seen

        return hook

    for place in places:
        shadow.get_submodule(place).register_forward_hook(remember(place))
    with contextlib.suppress(_Seen):
        shadow(_example_input(model))
    missing = [place for place in places if place not in shapes]
    if missing:
        raise ValueError(f"the forward pass of {type(model).__name__} never reaches {missing}")
    return shapes


def _example_input(model: nn.Module) -> Tensor:
    """A clip for a video network, an image for a 2-D one; on the meta device, so size is free.

    A network says which it takes by `takes_video`; for others the first convolution's weight does.
    """
    first = next((p for p in model.parameters() if p.ndim >= 4), None)
    takes_video = getattr(model, "takes_video", first is not None and first.ndim == 5)
    channels = 3 if first is None else first.shape[1]
    shape = (1, channels, 8, 224, 224) if takes_video else (1, channels, 224, 224)
    return torch.empty(shape, device="meta")


def _insert_behind(parent: nn.Module, child: str, name: str, block: nn.Module) -> None:
    if name in parent._modules:
        raise ValueError(f"{name!r} exists already: one block of a name behind one child")
    items = list(parent._modules.items())
    position = [key for key, _ in items].index(child) + 1
    items.insert(position, (name, block))
    # Sequential runs, and ModuleList iterates, in the order of this dictionary.
    parent._modules = OrderedDict(items)
