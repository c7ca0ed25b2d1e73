"""Puts an attention block behind a named module of any backbone, without renaming a parameter."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from videoattn.errors import did_you_mean
from videoattn.types import Video


class VideoView(nn.Module):
    """Shows a 2-D backbone's (N·T, C, H, W) features to a video block as (N, C, T, H, W).

    Every 4-D input is such a stack of images; others (a pooled feature) are handed on as they are.
    A video that comes out is turned back into images, anything else (logits) is handed on.

    num_frames: T, the number of consecutive images that are one clip. A `TSN` sets it to the number
        of segments that it was given; elsewhere it is what `insert_attention` was told.
    """

    def __init__(self, block: nn.Module, num_frames: int) -> None:
        super().__init__()
        self.block = block
        self.num_frames = num_frames

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.block(*(self._clips(x) if x.ndim == 4 else x for x in inputs))
        return out.transpose(1, 2).flatten(0, 1) if out.ndim == 5 else out

    def _clips(self, images: Tensor) -> Video:
        if images.shape[0] % self.num_frames:
            raise ValueError(
                f"{images.shape[0]} images are not a whole number of clips of {self.num_frames} "
                "frames; pass clips whole, or set num_frames"
            )
        return images.unflatten(0, (-1, self.num_frames)).transpose(1, 2)


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
    """Adds `make_block(channels)` behind each module named in `after`; returns the new names.

    The child `layer2.1` of an `nn.Sequential` (or `nn.ModuleList`) gets a neighbour
    `layer2.1_<name>` that runs right after it. A module that lies elsewhere, such as a residual
    block's last norm `layer2.1.bn2`, gets a child `layer2.1.bn2.<name>` that its output goes
    through. No existing key of the state dict changes. Channels come from a pass that computes
    shapes only. Where features are (N·T, C, H, W), as in 2-D backbones, the block is shown clips of
    `num_frames` images through a `VideoView`.

    Raises:
        ValueError: a name that is no module (the message lists the usual places), or one that
            already has a block of this name.
    """
    check_places(model, after)
    shapes = output_shapes(model, after)
    inserted = []
    for place in after:
        block = make_block(shapes[place][1])
        if len(shapes[place]) == 4:
            block = VideoView(block, num_frames)
        inserted.append(put_behind(model, place, name, block))
    return inserted


def put_behind(model: nn.Module, place: str, name: str, block: nn.Module) -> str:
    """Makes `place`'s output go through the block; returns the block's name in the model."""
    parent_name, _, child = place.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, nn.Sequential | nn.ModuleList):
        _insert_behind(parent, child, f"{child}_{name}", block)
        return f"{place}_{name}"
    module = model.get_submodule(place)
    if name in module._modules:
        raise ValueError(f"{place!r} has a {name!r} already: one block of a name behind one module")
    module.add_module(name, block)
    if type(module).forward is not nn.Sequential.forward:  # which runs its new last child by itself
        # An object that only names the child: deepcopy, torch.compile and torch.export follow it.
        module.register_forward_hook(_Through(name))
    return f"{place}.{name}"


class _Through:
    """A forward hook that sends a module's output through one of its own children."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        result: Tensor = module.get_submodule(self.name)(output)
        return result


def check_places(model: nn.Module, places: Sequence[str]) -> None:
    """Raises: ValueError for a name that is no module of the model, with the usual places."""
    known = dict(model.named_modules())
    for place in places:
        if not place or place not in known:
            usual = insertion_places(model)
            raise ValueError(
                f"cannot insert after {place!r}{did_you_mean(place, usual)}; the places are "
                f"{', '.join(usual)}"
            )


def insertion_places(model: nn.Module) -> list[str]:
    """Names of the children that a block can be put behind: what an `nn.Sequential` or an
    `nn.ModuleList` runs one after the other, such as the residual blocks of a stage. Containers of
    single layers only (a shortcut's convolution and norm) and of other containers are left out. A
    network whose blocks do not lie in containers says which they are: see `block_stages`."""
    if block_stages(model):
        return [name for blocks in block_stages(model).values() for name in blocks]
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


def block_stages(model: nn.Module) -> dict[str, list[str]]:
    """What the network itself says of its blocks: {"Mixed_3": ["Mixed_3b", "Mixed_3c"], ...}. Empty
    for one with a container for each stage, where their names tell."""
    return {stage: list(blocks) for stage, blocks in getattr(model, "block_stages", {}).items()}


def output_shapes(model: nn.Module, places: Sequence[str]) -> dict[str, torch.Size]:
    """The output shape of each place for an example input, computed on the meta device."""
    shadow = copy.deepcopy(model).to("meta").eval()
    shapes: dict[str, torch.Size] = {}

    def remember(place: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if not isinstance(output, Tensor) or output.ndim not in (4, 5):
                gives = tuple(output.shape) if isinstance(output, Tensor) else "no tensor"
                raise ValueError(
                    f"{place!r} gives {gives}, not features (N, C, T, H, W) or (N, C, H, W) that "
                    "attention could work on; choose an earlier place"
                )
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


def branch_ends(model: nn.Module) -> list[str]:
    """For each place, the last norm of its residual branch (`layer2.1.bn2`): where gates go, before
    the addition. A block that has no norm of its own is its own end."""
    ends = []
    for place in insertion_places(model):
        block = model.get_submodule(place)
        inside = dict(block.named_modules())
        norms = [
            name
            for name, child in block.named_children()
            if isinstance(child, nn.modules.batchnorm._BatchNorm)
        ]
        foreign = [name for name in _FOREIGN_ENDS if name in inside]
        end = [*norms, *foreign][-1:]  # pytorchvideo's own norm is the shortcut's
        ends.append(".".join([place, *end]))
    return ends


# The last norm where it lies deeper: pytorchvideo's blocks, its mobile ones, torchvision's video.
_FOREIGN_ENDS = ("branch2.norm_c", "layers.conv_2.kernel.bn", "conv2.1")


def _insert_behind(parent: nn.Module, child: str, name: str, block: nn.Module) -> None:
    if name in parent._modules:
        raise ValueError(f"{name!r} exists already: one block of a name behind one child")
    items = list(parent._modules.items())
    position = [key for key, _ in items].index(child) + 1
    items.insert(position, (name, block))
    # Sequential runs, and ModuleList iterates, in the order of this dictionary.
    parent._modules = OrderedDict(items)
