"""Other ways to insert a block: across layers, instead of a layer, or around a stage.

No parameter is renamed, and the networks survive deepcopy, torch.compile and torch.export.
"""

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from videoattn.attention.capture import Taps, capture
from videoattn.attention.insert import (
    check_positions,
    example_input,
    output_shapes,
    put_after,
    view_as_video,
)
from videoattn.types import ModelInfo


class Joined(nn.Module):
    """Calls `block(x, *features)` with the outputs of other modules in the same forward pass."""

    def __init__(self, model: nn.Module, block: nn.Module, places: Sequence[str]) -> None:
        super().__init__()
        self.block = block
        self.places = tuple(places)
        self._taps = Taps()
        for place in places:
            self._taps.tap_output(model.get_submodule(place), place)

    def forward(self, x: Tensor) -> Tensor:
        features = [self._taps.pop(place) for place in self.places]  # nothing is kept
        result: Tensor = self.block(x, *features)
        return result


def join_layers(
    model: nn.Module,
    make_block: Callable[[int, list[int]], nn.Module],
    query: str,
    sources: Sequence[str],
    *,
    name: str,
    num_frames: int = 1,
    info: ModelInfo | None = None,
) -> str:
    """Adds a block after `query` that also reads earlier layers; returns its name.

    Args:
        model: The network, which is changed.
        make_block: Returns the block for (channels, channels of each source). Its forward takes
            (x, *sources).
        query: The module whose output is x.
        sources: Modules that run before it.
        name: Name of the block.
        num_frames, info: See `insert_attention`.

    Raises:
        ValueError: If a module does not exist, or a source does not run before the query.
    """
    check_positions(model, [query, *sources], info)
    shapes = output_shapes(model, [*sources, query], info)
    order = list(shapes)
    late = [source for source in sources if order.index(source) > order.index(query)]
    if late or query in sources:
        raise ValueError(f"{late or query!r} does not run before {query!r}: choose earlier layers")
    block = make_block(shapes[query][1], [shapes[source][1] for source in sources])
    block = view_as_video(block, shapes[query], num_frames)
    return put_after(model, query, name, Joined(model, block, sources))


def replace_head(
    model: nn.Module,
    info: ModelInfo,
    make_head: Callable[[int, list[int], int], nn.Module],
    levels: Sequence[str],
    *,
    num_frames: int = 1,
) -> str:
    """Replaces the classifier by a head that also reads other layers; returns its name.

    Args:
        model: The network, which is changed.
        info: The network's structure.
        make_head: Returns the head for (width, channels of each level, number of classes). Its
            forward takes the classifier's input, (N, C) or (N, S, C) for S segments, and the
            levels as videos, and returns logits, (N, K) or (N, 1, K).
        levels: The layers.
        num_frames: See `insert_attention`.

    Raises:
        ValueError: If a level does not exist, or the network has no linear classifier of one
            vector for each clip or segment.
    """
    check_positions(model, levels, info)
    classifier = linear_classifier(model, info)
    shapes = output_shapes(model, levels, info)
    channels = [shapes[level][1] for level in levels]
    head = make_head(classifier.in_features, channels, classifier.out_features)
    head = view_as_video(head, shapes[levels[0]], num_frames)
    model.set_submodule(info.classifier, Joined(model, head, levels))
    return info.classifier


def linear_classifier(model: nn.Module, info: ModelInfo) -> nn.Linear:
    """Returns the classifier of a network.

    Raises:
        ValueError: If it is not a linear layer, or its input is not (N, C) or (N, S, C).
    """
    classifier = model.get_submodule(info.classifier)
    shadow = copy.deepcopy(model).to("meta").eval()
    with capture(shadow, [info.classifier], inputs=True, stop=True) as inputs:
        shadow(example_input(model, info))
    shape = tuple(inputs[info.classifier].shape)
    if not isinstance(classifier, nn.Linear) or len(shape) > 3:
        raise ValueError(
            f"{type(model).__name__} has no linear classifier of one vector for each clip: "
            f"`{info.classifier}` is a {type(classifier).__name__} of {shape}; choose another "
            "network"
        )
    return classifier


def replace_convolutions(
    model: nn.Module,
    make_layer: Callable[[int, int, int], nn.Module],
    stages: Sequence[str],
    *,
    num_frames: int = 1,
    info: ModelInfo | None = None,
) -> list[str]:
    """Replaces every convolution with a 3x3 extent inside the stages; returns their names.

    Args:
        model: The network, which is changed.
        make_layer: Returns the layer for (in_channels, out_channels, stride of height and width).
        stages: Dotted names of stages or blocks.
        num_frames, info: See `insert_attention`.

    Raises:
        ValueError: If a stage does not exist, or has no such convolution.
    """
    check_positions(model, stages, info)
    replaced = []
    for stage in stages:
        found = [
            (f"{stage}.{name}", module)
            for name, module in model.get_submodule(stage).named_modules()
            if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size[-2:] == (3, 3)
        ]
        if not found:
            raise ValueError(f"{stage!r} has no 3x3 convolution to replace")
        for path, conv in found:
            layer = make_layer(conv.in_channels, conv.out_channels, conv.stride[-1])
            layer = view_as_video(layer, conv.weight.shape, num_frames)
            for pre_hook in conv._forward_pre_hooks.values():  # TSM's shift of the input
                layer.register_forward_pre_hook(pre_hook)
            model.set_submodule(path, layer)
            replaced.append(path)
    return replaced


class MaskedStage(nn.Sequential):
    """A stage whose blocks after the first are the trunk F of a mask branch M.

    u = first(x), out = mask(u, F(u)). The blocks keep their names, so the keys of the stage do not
    change.
    """

    def __init__(self, stage: nn.Sequential, mask: nn.Module, name: str) -> None:
        super().__init__()
        for child_name, child in stage.named_children():
            self.add_module(child_name, child)
        self.add_module(name, mask)
        self._mask_name = name

    def forward(self, x: Tensor) -> Tensor:
        blocks = [child for name, child in self.named_children() if name != self._mask_name]
        u: Tensor = blocks[0](x)
        trunk = u
        for block in blocks[1:]:
            trunk = block(trunk)
        out: Tensor = self.get_submodule(self._mask_name)(u, trunk)
        return out


def mask_stages(
    model: nn.Module,
    make_mask: Callable[..., nn.Module],
    stages: Sequence[str],
    *,
    name: str,
    num_frames: int = 1,
    info: ModelInfo | None = None,
) -> list[str]:
    """Adds a mask to each stage; returns the masks' names.

    Args:
        model: The network, which is changed.
        make_mask: Returns the mask for (channels, grid=...), where grid is the smaller side of the
            stage's features for 224 x 224 input. Its forward takes the outputs of the stage's
            first and last block, both (N, C, T, H, W), and returns the stage's output.
        stages: Dotted names of `nn.Sequential` stages.
        name: Name of the masks.
        num_frames, info: See `insert_attention`.

    Raises:
        ValueError: If a name is not that of a stage with two or more blocks.
    """
    check_positions(model, stages, info)
    shapes = output_shapes(model, stages, info)
    names = []
    for position in stages:
        stage = model.get_submodule(position)
        if not isinstance(stage, nn.Sequential) or len(stage) < 2:
            raise ValueError(f"{position!r} is not a stage of two or more blocks: nothing to mask")
        mask = make_mask(shapes[position][1], grid=min(shapes[position][-2:]))
        mask = view_as_video(mask, shapes[position], num_frames)
        model.set_submodule(position, MaskedStage(stage, mask, name))
        names.append(f"{position}.{name}")
    return names
