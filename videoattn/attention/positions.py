"""The stages of a network, and the positions that papers chose for attention blocks."""

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
