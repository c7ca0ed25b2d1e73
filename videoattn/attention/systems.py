"""Every attention system by its recipe name: what it is, and how it goes into a backbone.

`SYSTEMS[name].attach(model, make, after, name)` puts blocks made by `make` (the system's
constructor with its options) at the places `after`, or at the paper's when that is empty.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from videoattn.attention.attach import (
    join_layers,
    mask_stages,
    replace_convolutions,
    replace_head,
)
from videoattn.attention.blocks.cbam import CBAM
from videoattn.attention.blocks.cgnl import CompactNonLocal
from videoattn.attention.blocks.channel_attention import ChannelAttention
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.attention.blocks.interaction import InteractionPyramid
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.blocks.pairwise import SimilarityAttention
from videoattn.attention.blocks.pay_attention import LearnToPay
from videoattn.attention.blocks.refinement import AttentionRefinement
from videoattn.attention.blocks.residual_attention import ResidualMask
from videoattn.attention.blocks.self_attention import SelfAttention
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.attention.blocks.stand_alone import StandAloneAttention
from videoattn.attention.insert import (
    block_stages,
    branch_ends,
    check_places,
    insert_attention,
    insertion_places,
    output_shapes,
)

Make = Callable[..., nn.Module]
Attach = Callable[[nn.Module, Make, Sequence[str], str], nn.Module]


@dataclass(frozen=True)
class System:
    """title, paper: for people. make: the constructor. attach: (model, make, after, name) -> the
    model with it. map_of: what its recorded map says; map_shape: the shape of it. losses: what it
    leaves behind in training (see losses.py), with the weights to start from."""

    title: str
    paper: str
    make: Make
    attach: Attach
    map_of: str
    map_shape: str
    losses: Mapping[str, float] = field(default_factory=dict)


def blocks_by_stage(model: nn.Module) -> dict[str, list[str]]:
    """The blocks of each stage: {"layer2": ["layer2.0", "layer2.1", ...], ...}. They are all of a
    kind: a list of stem, stages and head is no stage. Attention between them is none of them."""
    stages = block_stages(model)
    if stages:
        return stages
    for place in insertion_places(model):
        if not type(model.get_submodule(place)).__module__.startswith("videoattn.attention."):
            stages.setdefault(place.rpartition(".")[0], []).append(place)
    return {
        stage: blocks
        for stage, blocks in stages.items()
        if len({type(model.get_submodule(block)) for block in blocks}) == 1
    }


def last_stage(model: nn.Module) -> str:
    """Whose output the head reads: the last stage if it is a module that runs its blocks one after
    the other (`layer4`), else its last block (`Mixed_5c`).

    Raises: ValueError for a network without stages.
    """
    stages = blocks_by_stage(model)
    if not stages:
        raise ValueError(f"{type(model).__name__} has no stage of blocks; name a layer")
    name, blocks = list(stages.items())[-1]
    is_module = isinstance(dict(model.named_modules()).get(name), nn.Sequential)
    return name if is_module else blocks[-1]


def five_places(model: nn.Module) -> list[str]:
    """Where the non-local paper's authors put five blocks: behind every second block of the stage
    at an eighth of the frame's height, and three at a sixteenth (R101: blocks 6, 13, 20). Where the
    former is short, one there and every second of the latter: one at depth 18, two in Inception."""
    second, third = _stages(model)[-3:-1]
    if len(second) < 4:
        return [second[-1], *third[1::2]]
    step = len(third) // 3
    chosen = [6, 13, 20] if len(third) == 23 else [step - 1, 2 * step - 1, 3 * step - 1]
    return [second[1], second[3], *(third[index] for index in chosen)]


def _stages(model: nn.Module) -> list[list[str]]:
    """The blocks of the four stages of a ResNet, or of those that the network itself names."""
    stages = list(blocks_by_stage(model).values())
    if len(stages) != 4 and not block_stages(model):
        raise ValueError(
            f"{type(model).__name__} does not have the four stages of a ResNet, so this system has "
            f"no default place in it; name some in model.attention.after: "
            f"{', '.join(insertion_places(model))}"
        )
    return stages


def _stage_outputs(model: nn.Module, count: int) -> list[str]:
    """The modules that put out the last stages' features: the stages themselves, or their last
    blocks where these lie side by side."""
    ends = [blocks[-1] for blocks in _stages(model)]
    return (ends if block_stages(model) else list(blocks_by_stage(model)))[-count:]


def behind_blocks(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """Behind whole blocks: the five published places of the non-local paper, or those named."""
    insert_attention(model, make, after or five_places(model), name=name)
    return model


def behind_stages(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """Behind the last blocks of the last two stages, or the modules named."""
    places = after or [blocks[-1] for blocks in _stages(model)[-2:]]
    insert_attention(model, make, places, name=name)
    return model


def on_branches(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """On the residual branch after its last norm, before the addition: in every block, or in the
    blocks (or behind the modules) named."""
    ends = dict(zip(insertion_places(model), branch_ends(model), strict=True))
    blocks = [block for stage in blocks_by_stage(model).values() for block in stage]
    places = [ends.get(place, place) for place in after or blocks or ends]
    insert_attention(model, make, places, name=name)
    return model


def in_place_of_3x3(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """In place of the 3x3 convolutions of the last two stages, or of the stages or blocks named."""
    places = after or [block for stage in _stages(model)[-2:] for block in stage]
    replace_convolutions(model, make, places)
    return model


def around_stages(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """Around the second and third stage, or the stages named. `make(channels, grid=...)` is told
    how wide a stage's features are for 224 x 224 input."""
    if block_stages(model):
        raise ValueError(
            f"{name} goes around a stage whose blocks are all of one width, and those of "
            f"{type(model).__name__} widen from block to block; choose a ResNet, or another system"
        )
    stages = after or _stage_outputs(model, 3)[:2]
    check_places(model, stages)
    for stage, shape in output_shapes(model, stages).items():
        mask_stages(model, partial(make, grid=min(shape[-2:])), [stage], name=name)
    return model


def as_head(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """In place of the classifier, over the outputs of the last three stages or those named."""
    replace_head(model, make, after or _stage_outputs(model, 3))
    return model


def across_layers(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """Behind the last place named, with the others as its sources. By default the block before the
    last one asks the five places of the non-local paper."""
    places = list(after) or [*five_places(model), _stages(model)[-1][-2]]
    if len(places) < 2:
        raise ValueError(f"after: got {places}; need one or more sources and, last, the query")
    check_places(model, places)
    join_layers(model, make, places[-1], places[:-1], name=name)
    return model


def as_two_branches(model: nn.Module, make: Make, after: Sequence[str], name: str) -> nn.Module:
    """The model and a copy of it, which sees a crop: where is told by the output of the last stage,
    or of the one place named."""
    places = after or _stage_outputs(model, 1)
    if len(places) > 1:
        raise ValueError(
            f"after: got {list(places)}; {name} finds its region on one place's output"
        )
    return make(model, after=places[0])


SYSTEMS: dict[str, System] = {
    "non_local": System(
        title="Non-local",
        paper="Wang et al., CVPR 2018",
        make=NonLocal,
        attach=behind_blocks,
        map_of="where a position looks, over all frames",
        map_shape="(N, Q, T, H, W)",
    ),
    "cgnl": System(
        title="Compact generalized non-local",
        paper="Yue et al., NeurIPS 2018",
        make=CompactNonLocal,
        attach=behind_blocks,
        map_of="how strongly a position answers to the whole clip",
        map_shape="(N, T, H, W)",
    ),
    "cross_layer": System(
        title="Cross-layer non-local",
        paper="Ye et al., ICIP 2020",
        make=CrossLayerNonLocal,
        attach=across_layers,
        map_of="where a position looks in each of the earlier layers",
        map_shape="(N, Q, T, H, W)",
    ),
    "sagan": System(
        title="SAGAN self-attention",
        paper="Zhang et al., ICML 2019",
        make=SelfAttention,
        attach=behind_blocks,
        map_of="where a position looks, over all frames",
        map_shape="(N, Q, T, H, W)",
    ),
    "similarity": System(
        title="Attention by a chosen similarity",
        paper="after Wang et al., CVPR 2018",
        make=SimilarityAttention,
        attach=behind_blocks,
        map_of="where a position looks, over all frames",
        map_shape="(N, Q, T, H, W)",
    ),
    "channel_attention": System(
        title="Channel self-attention",
        paper="after Fu et al., CVPR 2019",
        make=ChannelAttention,
        attach=behind_blocks,
        map_of="the mean attention that a channel receives from all",
        map_shape="(N, C)",
    ),
    "stand_alone": System(
        title="Stand-alone self-attention",
        paper="Ramachandran et al., NeurIPS 2019",
        make=StandAloneAttention,
        attach=in_place_of_3x3,
        map_of="where a position looks within its window, mean over heads",
        map_shape="(N, Q, T, H, W)",
    ),
    "residual_attention": System(
        title="Residual attention",
        paper="Wang et al., CVPR 2017",
        make=ResidualMask,
        attach=around_stages,
        map_of="how much of each feature the mask adds to itself",
        map_shape="(N, C, T, H, W)",
    ),
    "hard_crop": System(
        title="AG-CNN, hard attention by cropping",
        paper="Guan et al., arXiv 1801.09927",
        make=HardCrop,
        attach=as_two_branches,
        map_of="the box that the local branch sees; its heat: how active places are",
        map_shape="(N, T, 4); (N, T', H', W')",
    ),
    "squeeze_excite": System(
        title="Squeeze-and-excitation",
        paper="Hu et al., CVPR 2018",
        make=SqueezeExcite,
        attach=on_branches,
        map_of="what each channel is multiplied by",
        map_shape="(N, C)",
    ),
    # S3D-G gates the output of each temporal convolution; a residual branch's end is our choice,
    # and `after` may name the convolutions' norms instead.
    "self_gating": System(
        title="S3D-G self-gating",
        paper="Xie et al., ECCV 2018",
        make=partial(SqueezeExcite, reduction=None),
        attach=on_branches,
        map_of="what each channel is multiplied by",
        map_shape="(N, C)",
    ),
    "cbam": System(
        title="CBAM with a temporal gate",
        paper="Woo et al., ECCV 2018",
        make=CBAM,
        attach=on_branches,
        map_of="what each channel, position and frame is multiplied by",
        map_shape="(N, C), (N, T, H, W), (N, T)",
    ),
    "refinement": System(
        title="Attention refinement",
        paper="Yu et al., ECCV 2018",
        make=AttentionRefinement,
        attach=behind_stages,
        map_of="what each channel is multiplied by",
        map_shape="(N, C)",
    ),
    "interaction": System(
        title="Interaction-aware pyramid",
        paper="Du et al., ECCV 2018",
        make=InteractionPyramid,
        attach=as_head,
        map_of="where each of D rows pools from, all levels fused, or each level alone",
        map_shape="(N, D, T, H, W)",
        losses={"interaction": 0.01, "diversity": 0.01},
    ),
    "pay_attention": System(
        title="Learn to pay attention",
        paper="Jetley et al., ICLR 2018",
        make=LearnToPay,
        attach=as_head,
        map_of="where each level's vector is pooled from",
        map_shape="(N, 1, T, H, W)",
    ),
}
