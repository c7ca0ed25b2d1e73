"""The table of attention systems: paper, block, positions, and the meaning of the map."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from torch import nn

from videoattn.attention import attach
from videoattn.attention.attach import stage_ends, stage_outputs, temporal_outputs
from videoattn.attention.blocks.cbam import CBAM
from videoattn.attention.blocks.cgnl import CompactNonLocal
from videoattn.attention.blocks.channel_attention import ChannelAttention
from videoattn.attention.blocks.cross_layer import CrossLayerNonLocal
from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.attention.blocks.interaction import InteractionLayer, InteractionPyramid
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.blocks.pay_attention import LearnToPay
from videoattn.attention.blocks.refinement import AttentionRefinement
from videoattn.attention.blocks.residual_attention import ResidualMask
from videoattn.attention.blocks.self_attention import SelfAttention
from videoattn.attention.blocks.similarity import SimilarityAttention
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.attention.blocks.stand_alone import StandAloneAttention
from videoattn.types import ModelInfo

Kind = Literal["block", "gate", "convolution", "mask", "head", "layers", "pyramid", "network"]


@dataclass(frozen=True)
class AttentionSystem:
    """An attention system: a row of `SYSTEMS`.

    Args:
        title: The name in tables and titles.
        paper: Authors, venue and year.
        make: The constructor of the block.
        kind: How blocks are attached. The function in `ATTACH` states the arguments of `make`.
        map_of: The meaning of the recorded map.
        map_shape: The shape of the recorded map.
        losses: Auxiliary losses of the block (see common.py), with default weights.
        default_after: Function from a network and its structure to the default positions, for a
            system whose default differs from that of its kind (attach.py).
    """

    title: str
    paper: str
    make: attach.Make
    kind: Kind
    map_of: str
    map_shape: str
    losses: Mapping[str, float] = field(default_factory=dict)
    default_after: Callable[[nn.Module, ModelInfo], Sequence[str]] | None = None

    def attach(
        self, model: nn.Module, info: ModelInfo, make: attach.Make, after: Sequence[str], name: str
    ) -> nn.Module:
        """Attaches the system to a network in place; returns the network, or a wrapper ("network").

        Args:
            make: The system's constructor, with its options bound.
            after: Positions; the default ones if empty.
            name: Name of the blocks in the network.

        Raises:
            ValueError: If a position does not exist or does not suit the system.
        """
        if not after and self.default_after is not None:
            after = self.default_after(model, info)
        return ATTACH[self.kind](model, info, make, after, name)


ATTACH: dict[Kind, Callable[..., nn.Module]] = {
    "block": attach.attach_blocks,
    "gate": attach.attach_gates,
    "convolution": attach.attach_convolutions,
    "mask": attach.attach_masks,
    "head": attach.attach_head,
    "layers": attach.attach_layers,
    "pyramid": attach.attach_pyramids,
    "network": attach.attach_network,
}

_pairwise = partial(
    AttentionSystem,
    kind="block",
    map_of="where a position looks, over all frames",
    map_shape="(N, Q, T, H, W)",
)
_channel_gate = partial(
    AttentionSystem, map_of="what each channel is multiplied by", map_shape="(N, C)"
)
_interaction = partial(
    AttentionSystem,
    paper="Du et al., ECCV 2018",
    map_of="D distributions over positions, of all levels together and of each",
    map_shape="(N, D, T, H, W)",
    losses={"interaction": 0.1, "diversity": 0.1},
)

SYSTEMS: dict[str, AttentionSystem] = {
    "non_local": _pairwise("Non-local", "Wang et al., CVPR 2018", NonLocal),
    "cgnl": AttentionSystem(
        title="Compact generalized non-local",
        paper="Yue et al., NeurIPS 2018",
        make=CompactNonLocal,
        kind="block",
        map_of="how strongly a position responds to the whole clip",
        map_shape="(N, T, H, W)",
    ),
    "cross_layer": AttentionSystem(
        title="Cross-layer non-local",
        paper="Ye et al., ICIP 2020",
        make=CrossLayerNonLocal,
        kind="layers",
        map_of="where a position looks in each of the earlier layers",
        map_shape="(N, Q, T, H, W)",
    ),
    "sagan": _pairwise("SAGAN self-attention", "Zhang et al., ICML 2019", SelfAttention),
    "similarity": _pairwise(
        "Attention by a chosen similarity", "after Wang et al., CVPR 2018", SimilarityAttention
    ),
    "channel_attention": AttentionSystem(
        title="Channel self-attention",
        paper="after Fu et al., CVPR 2019",
        make=ChannelAttention,
        kind="block",
        map_of="the mean attention that a channel receives from all",
        map_shape="(N, C)",
    ),
    "stand_alone": AttentionSystem(
        title="Stand-alone self-attention",
        paper="Ramachandran et al., NeurIPS 2019",
        make=StandAloneAttention,
        kind="convolution",
        map_of="where a position looks within its window, mean over heads",
        map_shape="(N, Q, T, H, W)",
    ),
    "residual_attention": AttentionSystem(
        title="Residual attention",
        paper="Wang et al., CVPR 2017",
        make=ResidualMask,
        kind="mask",
        map_of="the fraction of each feature that is added to it",
        map_shape="(N, C, T, H, W)",
    ),
    "hard_crop": AttentionSystem(
        title="AG-CNN, hard attention by cropping",
        paper="Guan et al., arXiv 1801.09927",
        make=HardCrop,
        kind="network",
        map_of="the box that the local branch sees; its heat: how active positions are",
        map_shape="(N, T, 4); (N, T', H', W')",
    ),
    "squeeze_excite": _channel_gate(
        "Squeeze-and-excitation", "Hu et al., CVPR 2018", SqueezeExcite, "gate"
    ),
    "self_gating": _channel_gate(
        "S3D-G self-gating",
        "Xie et al., ECCV 2018",
        partial(SqueezeExcite, reduction=None),
        "gate",
        default_after=temporal_outputs,
    ),
    "cbam": AttentionSystem(
        title="CBAM with a temporal gate",
        paper="Woo et al., ECCV 2018",
        make=CBAM,
        kind="gate",
        map_of="what each channel, position and frame is multiplied by",
        map_shape="(N, C), (N, T, H, W), (N, T)",
    ),
    "refinement": _channel_gate(
        "Attention refinement",
        "Yu et al., ECCV 2018",
        AttentionRefinement,
        "block",
        default_after=stage_ends,
    ),
    "interaction": _interaction(
        title="Interaction-aware pyramid", make=InteractionPyramid, kind="head"
    ),
    "interaction_layer": _interaction(
        title="Interaction-aware layer", make=InteractionLayer, kind="pyramid"
    ),
    "pay_attention": AttentionSystem(
        title="Learn to pay attention",
        paper="Jetley et al., ICLR 2018",
        make=LearnToPay,
        kind="head",
        map_of="where each level's vector is pooled from",
        map_shape="(N, 1, T, H, W)",
    ),
}

FORMER: dict[str, AttentionSystem] = {
    "residual_attention": replace(
        SYSTEMS["residual_attention"],
        default_after=lambda model, info: stage_outputs(model, info, 3)[:2],
    ),
    "hard_crop": replace(
        SYSTEMS["hard_crop"], make=partial(HardCrop, pool="backbone", keep="last")
    ),
    "self_gating": replace(SYSTEMS["self_gating"], default_after=None),
    "interaction": replace(
        SYSTEMS["interaction"],
        make=partial(InteractionPyramid, classify="mean", loss="normalized"),
        losses={"interaction": 0.01, "diversity": 0.01},
    ),
}
"""Rows of edition 1, for the systems whose first defaults differed from their papers."""

EDITIONS: dict[int, dict[str, AttentionSystem]] = {1: SYSTEMS | FORMER, 2: SYSTEMS}
"""The table for each edition (version) of the defaults. Explicit options mean the same in all."""
