"""Hard attention by cropping, AG-CNN (Guan et al., Diagnose like a Radiologist: Attention Guided
Convolutional Neural Network for Thorax Disease Classification, 2018, arXiv 1801.09927).

    H(p) = max_k |f_k(p)|             f: what the last stage of the global branch puts out
    M(p) = 1 where H(p) > tau         tau = 0.7
    box  = around the largest connected region of M
    out  = W [pool_g(f_g) ; pool_l(f_l)] + b        the local branch sees the box, resized

Two networks of one kind with weights of their own, trained one after the other: the global one, the
local one on the crops of a fixed global one, then W and b on the features of both, fixed.

Where we differ. The paper cuts images; here a clip gets one box for all frames, one in space and
time, or one for each frame. It does not say how H is scaled, and tau has no meaning on another
scale than [0, 1]: each clip's H goes from 0 to 1. It has a sigmoid for each of its diseases, here a
softmax over classes. Boxes have a least size, and a map that is the same everywhere means the whole
frame. The crop is of what the network is given, augmented as that is.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from videoattn.attention.attach import linear_classifier
from videoattn.attention.blocks.regions import (
    SCALES,
    STATISTICS,
    activity,
    bounding_boxes,
    box_of_frame,
    crop,
    in_pixels,
    largest_region,
    scaled,
)
from videoattn.attention.capture import InputTap, Tap
from videoattn.attention.common import check_choice, evaluating
from videoattn.attention.insert import check_positions, output_shapes
from videoattn.attention.record import GateMap
from videoattn.types import Logits, ModelInfo, Video, own_info

REGIONS = ("tube", "volume", "frame")
STAGES = ("global", "local", "fusion")
_HEAT = "How active the features at each place are: the box is put where they are most"


class HardCrop(nn.Module):
    """(N, 3, T, H, W) -> logits (N, K) of a global view, a crop of it, and both.

    model: a network with a linear classifier: the global branch. The local branch begins as a copy
        of it, as the paper's two begin with the same ImageNet weights.
    info: the network's structure; its own `info` by default.
    after: the module whose output is f, (N, C, T', H', W') or (N·T', C, H', W').
    region: "tube", one box for all frames, of H's maximum over time; "volume", the largest region
        of space and time, cut from both; "frame", a box for each of the T' frames, each scaled and
        thresholded alone, as images are.
    threshold: tau, 0 or more and below 1.
    statistic: of |f| over the channels: "max", "l1" or "l2".
    scale: H to [0, 1] by "minmax" or by its "max" alone.
    min_size: the least side of a box, as a share of the clip's.

    In training mode the logits are those of the stage (`set_stage`; a new one is in stage 0, the
    global branch), and what the stage does not train is in evaluation mode: neither its weights nor
    its running statistics move. In evaluation mode they are those of the fusion; `parts` has all.
    The fusion reads the input of each branch's classifier, its mean over segments if there are
    several.

    Raises:
        ValueError: an unknown option or module, a module that returns no grid, a model without a
            linear classifier.
    """

    num_stages = len(STAGES)

    def __init__(
        self,
        model: nn.Module,
        *,
        info: ModelInfo | None = None,
        after: str,
        region: str = "tube",
        threshold: float = 0.7,
        statistic: str = "max",
        scale: str = "minmax",
        min_size: float = 0.25,
    ) -> None:
        super().__init__()
        check_choice("region", region, REGIONS)
        check_choice("statistic", statistic, STATISTICS)
        check_choice("scale", scale, SCALES)
        if not 0 <= threshold < 1:
            raise ValueError(
                f"threshold: {threshold} is not in [0, 1): H goes from 0 to 1; the paper's is 0.7"
            )
        if not 0 <= min_size <= 1:
            raise ValueError(f"min_size: {min_size} is not in [0, 1]; it is a share of each side")
        info = info or own_info(model)
        if info is None:
            raise ValueError(
                f"info: the structure of {type(model).__name__} is unknown; give the network an "
                "attribute `info` (videoattn.types.ModelInfo)"
            )
        check_positions(model, [after], info)
        output_shapes(model, [after], info)  # refuses a module without features
        classifier = linear_classifier(model, info)  # the fusion needs its input
        self.region = region
        self.threshold = threshold
        self.statistic = statistic
        self.scale = scale
        self.min_size = min_size
        local = copy.deepcopy(model)
        self.global_branch, self._global_taps = model, _taps(model, after, info.classifier)
        self.local_branch, self._local_taps = local, _taps(local, after, info.classifier)
        self.fusion = nn.Linear(2 * classifier.in_features, classifier.out_features)
        nn.init.normal_(self.fusion.weight, std=0.01)
        nn.init.zeros_(self.fusion.bias)
        self.set_stage(0)
        self.info = _info_of_both(info)

    def set_stage(self, stage: int) -> None:
        """0 trains the global branch, 1 the local one, 2 the fusion; the rest is frozen.

        Raises:
            ValueError: another number.
        """
        if not 0 <= stage < len(STAGES):
            raise ValueError(f"stage: {stage} is not 0 (global), 1 (local) or 2 (fusion)")
        self.stage = stage
        for number, part in enumerate(self._trained()):
            part.requires_grad_(number == stage)
        self.train(self.training)

    def train(self, mode: bool = True) -> "HardCrop":
        super().train(mode)
        for number, part in enumerate(self._trained()):
            part.train(mode and number == self.stage)
        return self

    def forward(self, x: Video) -> Logits:
        if not self.training:
            return self.parts(x)["fused"]
        if self.stage == 0:
            return self._global(x)[0]
        with torch.no_grad():
            _, features_g, pooled_g = self._global(x)
            cut = crop(x, self._boxes(features_g, x))
        if self.stage == 1:
            return self._local(cut)[0]
        with torch.no_grad():
            pooled_l = self._local(cut)[1]
        return self._fused(pooled_g, pooled_l)

    def parts(self, x: Video) -> dict[str, Logits]:
        """The logits of the global branch, of the local one on the crop, and of both fused."""
        logits_g, features, pooled_g = self._global(x)
        logits_l, pooled_l = self._local(crop(x, self._boxes(features, x)))
        return {"global": logits_g, "local": logits_l, "fused": self._fused(pooled_g, pooled_l)}

    def boxes(self, x: Video) -> Tensor:
        """Where the global branch looks: (N, R, 3, 2), the first (t, y, x) and the first after. R
        is 1, or T' where frames have boxes of their own; the time of these is the clip's."""
        return self._boxes(self._global(x)[1], x)

    def maps(self, x: Video) -> Mapping[str, GateMap]:
        """The box in each frame, and the scaled H that it was found on ("heat")."""
        with evaluating(self):
            features = self._global(x)[1]
        boxes = self._boxes(features, x)
        times, corners = boxes[:, :, 0], boxes[:, :, 1:].transpose(2, 3).flatten(2)
        frame = torch.arange(x.shape[2], device=x.device)
        corners = corners[:, box_of_frame(x.shape[2], boxes.shape[1], x.device)]  # (N, T, 4)
        inside = (times[:, :1, 0] <= frame) & (frame < times[:, :1, 1])
        heat = self._heat(features)
        return {
            "": GateMap("box", (corners * inside[..., None]).to(heat.dtype)),
            "heat": GateMap("spatial", heat, description=_HEAT),
        }

    def _trained(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.global_branch, self.local_branch, self.fusion

    def _global(self, x: Video) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, K), f (N, C, T', H', W'), and the classifier's input, (N, D)."""
        logits = self.global_branch(x)
        features, pooled = self._global_taps.pop("features"), _pooled(self._global_taps)
        if features.ndim == 4:  # (N·S, C, H, W)
            features = features.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        return logits, features, pooled

    def _local(self, x: Video) -> tuple[Tensor, Tensor]:
        logits = self.local_branch(x)
        del self._local_taps["features"]
        return logits, _pooled(self._local_taps)

    def _fused(self, pooled_g: Tensor, pooled_l: Tensor) -> Logits:
        logits: Tensor = self.fusion(torch.cat([pooled_g, pooled_l], dim=1))
        return logits

    @torch.no_grad()
    def _heat(self, features: Video) -> Tensor:
        heat = activity(features, self.statistic)
        if self.region == "frame":
            return scaled(heat.flatten(0, 1)[:, None], self.scale).view_as(heat)
        return scaled(heat, self.scale)

    @torch.no_grad()
    def _boxes(self, features: Tensor, x: Video) -> Tensor:
        mask = self._heat(features) > self.threshold
        if self.region == "tube":
            mask = mask.any(1, keepdim=True)
        elif self.region == "frame":
            mask = mask.flatten(0, 1)[:, None]
        cells = bounding_boxes(largest_region(mask))
        pixels = in_pixels(cells, tuple(mask.shape[1:]), tuple(x.shape[2:]), self.min_size)
        return pixels.unflatten(0, (x.shape[0], -1))


def _taps(model: nn.Module, after: str, classifier: str) -> dict[str, Tensor]:
    """Returns the dictionary into which a forward pass puts f and the classifier's input."""
    taps: dict[str, Tensor] = {}
    model.get_submodule(after).register_forward_hook(Tap(taps, "features"))
    model.get_submodule(classifier).register_forward_pre_hook(InputTap(taps, "pooled"))
    return taps


def _pooled(taps: dict[str, Tensor]) -> Tensor:
    pooled = taps.pop("pooled")
    return pooled.mean(1) if pooled.ndim == 3 else pooled  # (N, S, C) of segments


def _info_of_both(info: ModelInfo) -> ModelInfo:
    """Returns the structure of the two branches; the local one's features are the last."""
    branches = ("global_branch", "local_branch")
    return ModelInfo(
        "fusion",
        {
            f"{branch}.{stage}": tuple(f"{branch}.{block}" for block in blocks)
            for branch in branches
            for stage, blocks in info.stages.items()
        },
        f"local_branch.{info.features}",
        info.axes,
        {
            f"{branch}.{block}": f"{branch}.{end}"
            for branch in branches
            for block, end in info.branch_ends.items()
        },
        map_name="hard_crop",
    )
