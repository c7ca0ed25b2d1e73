"""Attaches attention systems to networks (after blocks, on residual branches, in place of layers,
around stages, ...) and chooses their default positions.

Every `attach_*` function takes the network, its structure, the constructor of the block, the
positions (the default ones if empty) and the name of the blocks, and returns the network. Existing
parameters keep their names, except inside the wrapper that `attach_network` returns. The networks
survive deepcopy, torch.compile and torch.export.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn

from videoattn.attention import insert
from videoattn.attention.blocks.attention_stem import replace_stem
from videoattn.attention.blocks.residual_attention import MaskedStage
from videoattn.attention.capture import Taps
from videoattn.attention.maps import HasMaps
from videoattn.types import ModelInfo

Make = Callable[..., nn.Module]


def attach_blocks(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Adds `make(channels)` after each position, by default those of `published_positions`."""
    after = after or published_positions(model, info)
    insert.insert_attention(model, make, after, name=name, info=info)
    return model


def attach_gates(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Adds `make(channels)` to the branches of the blocks `after` (of all if empty), between the
    last norm and the addition. If a module has no branch, its output is processed instead."""
    blocks = after or [block for blocks in stages_of(model, info) for block in blocks]
    positions = [info.branch_ends.get(block, block) for block in blocks]
    return attach_blocks(model, info, make, positions, name)


def attach_convolutions(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Replaces the 3x3 convolutions inside the positions, by default the last two stages.

    If a position is `conv1`, the first convolution of a ResNet, an attention stem replaces it, and
    a 4x4 max pool replaces the pool after it.
    """
    stages = after or [block for blocks in stages_of(model, info)[-2:] for block in blocks]
    insert.check_positions(model, stages, info)
    if "conv1" in stages:
        replace_stem(model, "conv1", heads=getattr(make, "keywords", {}).get("heads", 8))
    replace_convolutions(model, make, [stage for stage in stages if stage != "conv1"])
    return model


def replace_convolutions(model: nn.Module, make: Make, stages: Sequence[str]) -> list[str]:
    """Replaces every convolution that is 3x3 in space inside stages or blocks, except in attention
    blocks, by `make(in_channels, out_channels, stride)`; returns the names of the new layers.

    Raises:
        ValueError: If a stage has no 3x3 convolution, or a block was inserted after one.
    """
    replaced = []
    for stage in stages:
        found = [
            (f"{stage}.{name}", module)
            for name, module in _outside_attention(model.get_submodule(stage))
            if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size[-2:] == (3, 3)
        ]
        if not found:
            raise ValueError(f"{stage!r} has no 3x3 convolution to replace")
        for path, conv in found:
            if conv._forward_hooks:
                raise ValueError(
                    f"{path!r} has a block after it, which would be lost; insert that block later"
                )
            layer = make(conv.in_channels, conv.out_channels, conv.stride[-1])
            layer = insert.view_as_video(layer, conv.weight.shape)
            for pre_hook in conv._forward_pre_hooks.values():  # TSM's shift of the input
                layer.register_forward_pre_hook(pre_hook)
            model.set_submodule(path, layer)
            replaced.append(path)
    return replaced


def _outside_attention(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, HasMaps):
        return
    yield name, module
    for child_name, child in module.named_children():
        yield from _outside_attention(child, f"{name}.{child_name}" if name else child_name)


class Joined(nn.Module):
    """Calls `block(x, *features)` with the outputs of `sources` in the same forward pass, as
    processed by the blocks that were already inserted after them."""

    def __init__(self, model: nn.Module, block: nn.Module, sources: Sequence[str]) -> None:
        super().__init__()
        self.block = block
        self.sources = tuple(sources)
        self._taps = Taps()
        for source in sources:
            self._taps.tap_output(model.get_submodule(insert.with_blocks(model, source)), source)

    def forward(self, x: Tensor) -> Tensor:
        features = [self._taps.pop(source) for source in self.sources]
        return self.block(x, *features)


def attach_layers(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Adds `make(channels, source_channels)` after the last position. Its forward takes (x,
    *sources): the outputs of that position and of the others. By default, the second-to-last (or
    only) block of the last stage attends to `published_positions`.

    Raises:
        ValueError: If there is no source, or a source does not run before the last position.
    """
    positions = list(after)
    if not positions:
        positions = [*published_positions(model, info), stages_of(model, info)[-1][-2:][0]]
    if len(positions) < 2:
        raise ValueError(f"after: got {positions}; need one or more sources and, last, the query")
    shapes = insert.output_shapes(model, positions, info)
    *sources, query = positions
    order = list(shapes)
    late = [source for source in sources if order.index(source) > order.index(query)]
    if late or query in sources:
        raise ValueError(f"{late or query!r} does not run before {query!r}: choose earlier layers")
    block = make(shapes[query][1], [shapes[source][1] for source in sources])
    block = insert.view_as_video(block, shapes[query])
    insert.put_after(model, query, name, Joined(model, block, sources))
    return model


def attach_pyramids(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Adds `make(channels, source_channels)` after each position, by default the next-to-last
    stage. Its forward takes (x, *sources): the output of the position and the outputs of all
    earlier stages."""
    stages = stage_outputs(model, info, len(info.stages))
    for position in after or stages[-2:-1]:
        others = [stage for stage in stages if stage != position]
        shapes = insert.output_shapes(model, [*others, position], info)
        order = list(shapes)
        sources = [s for s in stages if order.index(s) < order.index(position)]
        block = make(shapes[position][1], [shapes[source][1] for source in sources])
        block = insert.view_as_video(block, shapes[position])
        insert.put_after(model, position, name, Joined(model, block, sources))
    return model


def attach_head(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Replaces the classifier by `make(width, level_channels, num_classes)`. Its forward takes
    (pooled, *levels): the classifier's input, (N, C) or (N, S, C) for S segments, and the outputs
    of the positions, by default of the last three stages. It returns (N, K), or (N, 1 or S, K).

    Raises:
        ValueError: If the network has no linear classifier, or its input has another shape.
    """
    levels = after or stage_outputs(model, info, 3)
    shapes = insert.output_shapes(model, levels, info)
    classifier = linear_classifier(model, info)
    channels = [shapes[level][1] for level in levels]
    head = make(classifier.in_features, channels, classifier.out_features)
    head = insert.view_as_video(head, shapes[levels[0]])
    model.set_submodule(info.classifier, Joined(model, head, levels))
    return model


def linear_classifier(model: nn.Module, info: ModelInfo) -> nn.Linear:
    """Returns the network's classifier.

    Raises:
        ValueError: If it is not a linear layer whose input is (N, C) or (N, S, C).
    """
    classifier = model.get_submodule(info.classifier)
    inputs = insert.dry_run(model, [info.classifier], info, inputs=True)
    shape = (1, *inputs[info.classifier].shape[1:])
    if not isinstance(classifier, nn.Linear) or len(shape) > 3:
        raise ValueError(
            f"{type(model).__name__}: got the classifier `{info.classifier}`, a "
            f"{type(classifier).__name__} of {shape}; need a linear layer of one vector per clip; "
            "choose another network"
        )
    return classifier


def attach_masks(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Adds masks `make(channels, grid=...)` to stages, by default the first three. `grid` is the
    smaller side, in positions, of the stage's features for an input of 224 x 224. A mask's forward
    takes the input and the output of its trunk, and returns the masked output.

    A stage named n times gets n masks. Its blocks after the first are split into n trunks.

    Raises:
        ValueError: If a position is not an `nn.Sequential` of at least 1 + n blocks.
    """
    modules = dict(model.named_modules())
    if not any(isinstance(modules.get(stage), nn.Sequential) for stage in info.stages):
        raise ValueError(
            f"{name} goes around a stage whose blocks run in one nn.Sequential, and "
            f"{type(model).__name__} has none; choose a ResNet, or another system"
        )
    stages = list(after) or stage_outputs(model, info, len(info.stages))[:3]
    for position, shape in insert.output_shapes(model, stages, info).items():
        stage, count = modules[position], stages.count(position)
        if not isinstance(stage, nn.Sequential) or len(stage) < 1 + count:
            raise ValueError(
                f"{position!r} has nothing to mask; need a stage of {1 + count} or more blocks"
            )
        if name in stage._modules:
            raise ValueError(f"{position!r} already has {name}; choose another position")
        grid = min(shape[-2:])
        masks = [insert.view_as_video(make(shape[1], grid=grid), shape) for _ in range(count)]
        model.set_submodule(position, MaskedStage(stage, masks, name))
    return model


def attach_network(
    model: nn.Module, info: ModelInfo, make: Make, after: Sequence[str], name: str
) -> nn.Module:
    """Wraps the network: returns `make(model, info=info, after=...)`. The wrapper selects a region
    from the output of one module, by default the last stage."""
    positions = after or stage_outputs(model, info, 1)
    if len(positions) > 1:
        raise ValueError(
            f"after: got {list(positions)}; {name} needs one module, whose output "
            "selects the region"
        )
    return make(model, info=info, after=positions[0])


def published_positions(model: nn.Module, info: ModelInfo) -> list[str]:
    """Returns the blocks after which the authors of the non-local paper insert their five blocks.

    Two follow the second and fourth block of the stage at 1/8 of the frame's height, three are
    spread over the stage at 1/16 (blocks 6, 13 and 20, from 0, at depth 101). If the 1/8 stage
    has fewer than four blocks, or the 1/16 stage fewer than three, the positions are the last block
    of the first and every second block of the other, or its only block.
    """
    second, third = stages_of(model, info)[-3:-1]
    if len(second) < 4 or len(third) < 3:
        return [second[-1], *(third[1::2] or third)]
    step = len(third) // 3
    chosen = [6, 13, 20] if len(third) == 23 else [step - 1, 2 * step - 1, 3 * step - 1]
    return [second[1], second[3], *(third[index] for index in chosen)]


def stages_of(model: nn.Module, info: ModelInfo) -> list[tuple[str, ...]]:
    """Returns the blocks of each stage; raises a ValueError for fewer than three stages."""
    if len(info.stages) < 3:
        raise ValueError(
            f"after: {type(model).__name__} does not have the four stages of a ResNet, so this "
            "system has no default position in it; name modules of the network"
        )
    return list(info.stages.values())


def stage_outputs(model: nn.Module, info: ModelInfo, count: int) -> list[str]:
    """Returns names of the modules whose outputs are the features of the last `count` stages: each
    stage itself if it runs its blocks in sequence, else its last block."""
    modules = dict(model.named_modules())
    outputs = [
        name if isinstance(modules.get(name), nn.Sequential) else blocks[-1]
        for name, blocks in zip(info.stages, stages_of(model, info), strict=True)
    ]
    return outputs[-count:]


def stage_ends(model: nn.Module, info: ModelInfo) -> list[str]:
    """Returns the last blocks of the last two stages."""
    return [blocks[-1] for blocks in stages_of(model, info)[-2:]]


def temporal_outputs(model: nn.Module, info: ModelInfo) -> list[str]:
    """Returns names of the modules in the stages that end a temporal convolution: the norm after
    it, or the unit of the convolution, a norm and a ReLU. The list may be empty."""
    found = []
    for name in [block for blocks in stages_of(model, info) for block in blocks]:
        for path, module in model.get_submodule(name).named_modules(prefix=name):
            children = list(module.named_children())
            for (_, first), (child, second) in pairwise(children):
                mixes_frames = isinstance(first, nn.Conv3d) and first.kernel_size[0] > 1
                if not mixes_frames or not isinstance(second, nn.BatchNorm3d):
                    continue
                is_unit = [type(child) for _, child in children[1:]] == [nn.BatchNorm3d, nn.ReLU]
                found.append(path if is_unit else f"{path}.{child}")
    return found
