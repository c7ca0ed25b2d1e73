"""Inserts an attention block after a named module of any network; no parameter is renamed."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from videoattn.attention.capture import Captured, capture
from videoattn.attention.maps import HasMaps
from videoattn.errors import did_you_mean
from videoattn.types import ModelInfo, Video, own_info


class VideoView(nn.Module):
    """Lets a video block read the features (N·T, C, H, W) of a 2-D network as (N, C, T, H, W).

    A 4-D input is a stack of images. Other inputs, such as a pooled feature, pass unchanged. If the
    block returns a video, it becomes images again; logits pass unchanged.

    Args:
        num_frames: T, the number of consecutive images that form a clip. A `TSN` sets it to its
            number of segments.
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
                f"{images.shape[0]} images do not divide into clips of {self.num_frames} frames; "
                "pass whole clips, or set num_frames"
            )
        return images.unflatten(0, (-1, self.num_frames)).transpose(1, 2)


def insert_attention(
    model: nn.Module,
    make_block: Callable[[int], nn.Module],
    after: Sequence[str],
    *,
    name: str = "attention",
    num_frames: int = 1,
    info: ModelInfo | None = None,
) -> list[str]:
    """Adds `make_block(channels)` after each module named in `after`; returns the new names.

    The child `layer2.1` of an `nn.Sequential` (or `nn.ModuleList`) gets a neighbor
    `layer2.1_<name>` that runs right after it. Any other module, such as a residual block's last
    norm `layer2.1.bn2`, gets a child `layer2.1.bn2.<name>`, which processes its output. Blocks
    with attention maps that are inserted after the same module run in the order of insertion. No
    existing key of the state dict changes. A pass that computes only shapes determines the number
    of channels.

    Args:
        model: The network, which is changed in place.
        make_block: Constructor of the block.
        after: Dotted names of modules.
        name: Name of the blocks.
        num_frames: Frames in a clip, for a 2-D network with features (N·T, C, H, W). Its blocks
            are wrapped in a `VideoView`.
        info: Structure of the network; its own `info` by default.

    Raises:
        ValueError: If a module does not exist (the message lists the usual positions), or already
            has a block of this name.
    """
    shapes = output_shapes(model, after, info)
    inserted = []
    for position in after:
        block = view_as_video(make_block(shapes[position][1]), shapes[position], num_frames)
        inserted.append(put_after(model, position, name, block))
    return inserted


def view_as_video(block: nn.Module, shape: torch.Size, num_frames: int = 1) -> nn.Module:
    """Wraps a block in a `VideoView` if features of this shape are images."""
    return VideoView(block, num_frames) if len(shape) == 4 else block


def put_after(model: nn.Module, position: str, name: str, block: nn.Module) -> str:
    """Sends the output of the module at `position` through the block; returns the block's name."""
    parent_name, _, child = position.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, nn.Sequential | nn.ModuleList):
        if f"{child}_{name}" in parent._modules:
            raise ValueError(f"'{child}_{name}' already exists; choose another name or position")
        items = list(parent._modules.items())
        last = list(parent._modules).index(_last(parent, child))
        items.insert(last + 1, (f"{child}_{name}", block))
        # Sequential runs, and ModuleList iterates, in the order of this dictionary.
        parent._modules = OrderedDict(items)
        return f"{position}_{name}"
    module = model.get_submodule(position)
    if name in module._modules:
        raise ValueError(
            f"{position!r} already has a block {name!r}; choose another name or position"
        )
    module.add_module(name, block)
    if not runs_last_child(module):
        hooks = module._forward_hooks.values()
        through = next((hook for hook in hooks if isinstance(hook, _Through)), None)
        if through is None:
            # The first hook, so that blocks that read this module's output see the result.
            module.register_forward_hook(through := _Through(), prepend=True)
        through.names.append(name)
    return f"{position}.{name}"


def with_blocks(model: nn.Module, position: str) -> str:
    """Returns the name of the module whose output includes the blocks inserted after a position."""
    parent_name, _, child = position.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, nn.Sequential | nn.ModuleList):
        return position.removesuffix(child) + _last(parent, child)
    return position


def runs_last_child(module: nn.Module) -> bool:
    """Returns whether a new child of the module would run after the others."""
    forward = type(module).forward
    return forward is nn.Sequential.forward or getattr(module, "runs_last_child", False)


class _Through:
    """A forward hook that passes a module's output through children of the module. It stores only
    the names of the children, so deepcopy, torch.compile and torch.export work."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for name in self.names:
            output = module.get_submodule(name)(output)
        return output


def check_positions(
    model: nn.Module, positions: Sequence[str], info: ModelInfo | None = None
) -> None:
    """Raises a ValueError that lists the usual positions if one is not the name of a module."""
    known = dict(model.named_modules())
    for position in positions:
        if not position or position not in known:
            usual = insertion_places(model, info)
            raise ValueError(
                f"cannot insert after {position!r}{did_you_mean(position, usual)}; choose from "
                f"{', '.join(usual)}"
            )


def insertion_places(model: nn.Module, info: ModelInfo | None = None) -> list[str]:
    """Returns the usual insertion points: names of modules to insert a block after.

    These are the blocks of a network of known structure. For other networks they are the children
    of each `nn.Sequential` or `nn.ModuleList` that holds blocks. Containers of single layers (a
    shortcut's convolution and norm) or of other containers do not count.
    """
    info = info or own_info(model)
    if info is not None and info.stages:
        return info.blocks
    points: list[str] = []
    for path, module in model.named_modules():
        children = dict(module.named_children())
        holds_blocks = any(
            list(child.children()) and not isinstance(child, nn.Sequential | nn.ModuleList)
            for child in children.values()
        )
        if isinstance(module, nn.Sequential | nn.ModuleList) and holds_blocks:
            points += [f"{path}.{name}" if path else name for name in children]
    return points


def output_shapes(
    model: nn.Module, positions: Sequence[str], info: ModelInfo | None = None
) -> dict[str, torch.Size]:
    """Returns the output shape of each module, in order of execution. The batch size may be 0.

    Raises:
        ValueError: If a module does not exist (see `check_positions`), does not run, or does not
            return features.
    """
    check_positions(model, positions, info)
    outputs = dry_run(model, positions, info)
    missing = [position for position in positions if position not in outputs.calls]
    if missing:
        raise ValueError(f"{type(model).__name__} does not run {missing}; choose other modules")
    for position in positions:
        output = outputs.get(position)
        if output is None or output.ndim not in (4, 5):
            gives = "no tensor" if output is None else (1, *output.shape[1:])
            raise ValueError(
                f"{position!r} returns {gives}; attention needs features (N, C, T, H, W) or "
                "(N, C, H, W); choose an earlier module"
            )
    return {position: output.shape for position, output in outputs.items()}


def dry_run(
    model: nn.Module, names: Sequence[str], info: ModelInfo | None = None, *, inputs: bool = False
) -> Captured:
    """Runs a copy of a network on an empty batch, with weights that take no memory, and returns the
    outputs (or inputs) of modules, whose batch size is 0.

    A network that fails on an empty batch runs on one clip or image on the meta device instead,
    which imports torch._dynamo.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    clip = example_input(model, info)
    try:
        empty = torch.empty(0, *clip.shape[1:], device="cpu")
        return _run(_weightless(shadow), names, empty, inputs)
    except (RuntimeError, ValueError, LookupError, ArithmeticError, TypeError, AssertionError):
        # It fails on an empty batch, or has an error, which the second run raises again.
        shadow = copy.deepcopy(model).to("meta").eval()
    return _run(shadow, names, clip, inputs)


def _weightless(model: nn.Module) -> nn.Module:
    """Replaces all tensors of a model by zeros of the same shapes that take no memory."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_zeros(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else _zeros(buffer)
    return model


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device="cpu").expand(like.shape)


def _run(model: nn.Module, names: Sequence[str], clip: Tensor, inputs: bool) -> Captured:
    with (
        torch.device(clip.device),
        torch.no_grad(),
        capture(model, names, inputs=inputs, stop=True) as captured,
    ):
        model(clip)
    return captured


def example_input(model: nn.Module, info: ModelInfo | None = None) -> Tensor:
    """Returns a clip or an image on the meta device, where it takes no memory, in the layout of
    `info`. A network of unknown structure gets an image if its first convolution is 2-D."""
    info = info or own_info(model)
    first = next((p for p in model.parameters() if p.ndim >= 4), None)
    channels = 3 if first is None else first.shape[1]
    if info is None:
        info = ModelInfo("", axes="NCHW" if first is not None and first.ndim == 4 else "NCTHW")
    sizes = {"N": 1, "C": channels, "T": 8, "H": 224, "W": 224}
    return torch.empty([sizes[axis] for axis in info.axes], device="meta")


def _last(parent: nn.Module, child: str) -> str:
    """Returns the name of the last attention block inserted after a child, or the child itself."""
    names, last = list(parent._modules), child
    for name in names[names.index(child) + 1 :]:
        parts = parent.get_submodule(name).modules()
        if not (name.startswith(f"{child}_") and any(isinstance(m, HasMaps) for m in parts)):
            break
        last = name
    return last
