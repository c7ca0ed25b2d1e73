"""Where attention blocks go in a network: its stages, and the positions that papers chose."""

from torch import nn

from videoattn.types import ModelInfo


def published_positions(model: nn.Module, info: ModelInfo) -> list[str]:
    """Returns the five positions that the authors of the non-local paper chose.

    Two are after every second block of the stage at an eighth of the frame's height, three in the
    stage at a sixteenth (R101: blocks 6, 13, 20). If the former stage is short, there is one in it
    and one after every second block of the latter: one at depth 18, two in Inception.
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
    """Returns the modules that return the features of the last `count` stages: the stage itself if
    it runs its blocks one after the other, else its last block."""
    modules = dict(model.named_modules())
    outputs = []
    for name, blocks in zip(info.stages, stages_of(model, info), strict=True):
        outputs.append(name if isinstance(modules.get(name), nn.Sequential) else blocks[-1])
    return outputs[-count:]
