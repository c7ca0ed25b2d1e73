"""The stages of a network, and the positions that papers chose for attention blocks."""

from itertools import pairwise

from torch import nn

from videoattn.types import ModelInfo


def published_positions(model: nn.Module, info: ModelInfo) -> list[str]:
    """Returns the five positions that the authors of the non-local paper chose.

    Two are in the stage at 1/8 of the frame's height, after every second block; three are in the
    stage at 1/16 (R101: blocks 6, 13, 20). If the 1/8 stage is short, it has one, and the 1/16
    stage has one after every second block: one at depth 18, two in Inception.
    """
    second, third = stages_of(model, info)[-3:-1]
    if len(second) < 4:
        return [second[-1], *third[1::2]]
    step = len(third) // 3
    chosen = [6, 13, 20] if len(third) == 23 else [step - 1, 2 * step - 1, 3 * step - 1]
    return [second[1], second[3], *(third[index] for index in chosen)]


def stages_of(model: nn.Module, info: ModelInfo) -> list[tuple[str, ...]]:
    """Returns the blocks of each stage.

    Raises:
        ValueError: If the network has fewer than three stages, which default positions need.
    """
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
    outputs = []
    for name, blocks in zip(info.stages, stages_of(model, info), strict=True):
        outputs.append(name if isinstance(modules.get(name), nn.Sequential) else blocks[-1])
    return outputs[-count:]


def temporal_outputs(model: nn.Module, info: ModelInfo) -> list[str]:
    """Returns the modules that end a convolution over time inside the stages: the norm that
    follows it, or the unit of a convolution, a norm and a ReLU. Empty without such convolutions."""
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
