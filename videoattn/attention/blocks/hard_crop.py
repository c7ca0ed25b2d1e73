"""The hard-attention network AG-CNN (Guan et al., Diagnose like a Radiologist: Attention Guided
Convolutional Neural Network for Thorax Disease Classification, 2018, arXiv 1801.09927).

    H(p) = max_k |f_k(p)|             f: output of the last stage of the global branch
    M(p) = 1 if H(p) > tau, else 0    tau = 0.7
    box  = bounding box of the largest connected region of M
    out  = W [pool_g(f_g) ; pool_l(f_l)] + b        the local branch reads the resized crop

The two branches have the same architecture and separate weights. Training has three stages: the
global branch; the local branch on crops from the frozen global branch; then W and b on the features
of both frozen branches.

Where we differ. The paper crops images; here a clip gets one box for all frames, one in space and
time, or one per frame. The paper does not define the scale of H, and tau needs one: here H goes
from 0 to 1 in each clip. The paper uses one sigmoid per disease. Here the recipe's loss determines
the scores, by default a softmax over classes. Boxes have a minimum size, and a constant map selects
the whole frame. The crop is taken from the network's input, after augmentation.
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from videoattn.attention.attach import linear_classifier
from videoattn.attention.blocks import regions
from videoattn.attention.capture import Taps
from videoattn.attention.common import evaluating, mean_of_segments, small_weights
from videoattn.attention.insert import dry_run, output_shapes
from videoattn.attention.maps import GateMap
from videoattn.errors import one_of
from videoattn.types import Logits, ModelInfo, Video, own_info

_HEAT = "How active the features are at each position; the box surrounds the most active region"


class HardCrop(nn.Module):
    """A network that classifies a clip (N, 3, T, H, W), a crop of it, and both: logits (N, K).

    In training mode the logits are those of the current stage (see `set_stage`; the first is the
    global branch). Modules that the stage does not train are in evaluation mode, so neither their
    weights nor their running statistics change. In evaluation mode the logits are those of the
    fusion; `parts` returns all three. The fusion reads the input of each branch's classifier,
    averaged over segments if there are several.

    Args:
        model: The global branch, a network with a linear classifier. The local branch starts as a
            copy of it, just as the paper initializes both with the same ImageNet weights.
        info: The network's structure. Default: its attribute `info`.
        after: The module whose output is f, (N, C, T', H', W') or (N·T', C, H', W').
        region: "tube", one box for all frames: H is scaled over the clip and thresholded, and a
            cell counts if it passes in any frame. (Scaling the maximum of H over time instead would
            give other boxes.) "volume": the largest region of space and time,
            which also crops time. "frame": one box for each of the T' frames, which are scaled and
            thresholded separately.
        threshold: tau, in [0, 1).
        statistic: H as the "max", mean ("l1") or root mean square ("l2") of |f| over channels.
        scale: Scale H to [0, 1] by "minmax" or by its "max".
        min_size: The minimum side of a box as a fraction of the clip's side, in [0, 1].
        pool: How each branch pools the features that its classifier and the fusion read: "max", a
            global maximum (the paper's Pool5), in place of the network's module `avgpool`; or
            "backbone", as the network does, usually a mean.
        keep: The weights from which the next stage starts: those of the stage's "best" validated
            epoch (the paper) or of its "last" epoch.

    Raises:
        ValueError: If an option or module is unknown, the module does not return a grid, or the
            model has no linear classifier.
    """

    num_stages = 3

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
        pool: str = "max",
        keep: str = "best",
    ) -> None:
        super().__init__()
        self.keeps_best = one_of("keep", keep, ("best", "last")) == "best"
        if not 0 <= threshold < 1:
            raise ValueError(
                f"threshold: got {threshold}; need 0 or more and below 1 (the paper has 0.7)"
            )
        if not 0 <= min_size <= 1:
            raise ValueError(f"min_size: got {min_size}; need a fraction of each side, 0 to 1")
        info = info or own_info(model)
        if info is None:
            raise ValueError(
                f"info: the structure of {type(model).__name__} is unknown; give the network an "
                "attribute `info` (videoattn.types.ModelInfo)"
            )
        output_shapes(model, [after], info)  # raises an error for a module without features
        classifier = linear_classifier(model, info)  # the fusion needs its input
        self.region = one_of("region", region, ("tube", "volume", "frame"))
        self.threshold = threshold
        self.statistic = one_of("statistic", statistic, regions.STATISTICS)
        self.scale = one_of("scale", scale, regions.SCALES)
        self.min_size = min_size
        if one_of("pool", pool, ("max", "backbone")) == "max":
            _pool_by_maximum(model, info)
        local = copy.deepcopy(model)
        self.global_branch, self._global_taps = model, _taps(model, after, info.classifier)
        self.local_branch, self._local_taps = local, _taps(local, after, info.classifier)
        self.fusion = nn.Linear(2 * classifier.in_features, classifier.out_features)
        small_weights(self.fusion)
        self.set_stage(0)
        self.info = _info_of_both(info)

    def set_stage(self, stage: int) -> None:
        """Trains the global branch (0), local branch (1) or fusion (2), and freezes the rest.

        Raises:
            ValueError: If the stage is another number.
        """
        if not 0 <= stage < self.num_stages:
            raise ValueError(f"stage: got {stage}; need 0 (global), 1 (local) or 2 (fusion)")
        self.stage = stage
        for number, module in enumerate(self._modules_by_stage()):
            module.requires_grad_(number == stage)
        self.train(self.training)

    def train(self, mode: bool = True) -> "HardCrop":
        super().train(mode)
        for number, module in enumerate(self._modules_by_stage()):
            module.train(mode and number == self.stage)
        return self

    def forward(self, x: Video) -> Logits:
        if not self.training:
            return self.parts(x)["fused"]
        if self.stage == 0:
            return self._global(x)[0]
        with torch.no_grad():
            _, features_g, pooled_g = self._global(x)
            cut = regions.crop(x, self._boxes(features_g, x))
        if self.stage == 1:
            return self._local(cut)[0]
        with torch.no_grad():
            pooled_l = self._local(cut)[1]
        return self._fused(pooled_g, pooled_l)

    def parts(self, x: Video) -> dict[str, Logits]:
        """Returns the logits "global", "local" (of the crop) and "fused"."""
        logits_g, features, pooled_g = self._global(x)
        logits_l, pooled_l = self._local(regions.crop(x, self._boxes(features, x)))
        return {"global": logits_g, "local": logits_l, "fused": self._fused(pooled_g, pooled_l)}

    def boxes(self, x: Video) -> Tensor:
        """Returns the boxes (N, R, 3, 2) as [start, end) for t, y and x. R is 1, or T' for
        region="frame", where t spans the whole clip."""
        return self._boxes(self._global(x)[1], x)

    def maps(self, x: Video) -> Mapping[str, GateMap]:
        """Returns the box in each frame as "", and the scaled H as "heat"."""
        with evaluating(self):
            features = self._global(x)[1]
        boxes = self._boxes(features, x)
        times, corners = boxes[:, :, 0], boxes[:, :, 1:].transpose(2, 3).flatten(2)
        frame = torch.arange(x.shape[2], device=x.device)
        which = regions.box_of_frame(x.shape[2], boxes.shape[1], x.device)
        corners = corners[:, which]  # (N, T, 4)
        inside = (times[:, :1, 0] <= frame) & (frame < times[:, :1, 1])
        heat = self._heat(features)
        return {
            "": GateMap("box", (corners * inside[..., None]).to(heat.dtype)),
            "heat": GateMap("spatial", heat, description=_HEAT),
        }

    def _modules_by_stage(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.global_branch, self.local_branch, self.fusion

    def _global(self, x: Video) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits (N, K), f (N, C, T', H', W') and the classifier's input (N, D)."""
        logits = self.global_branch(x)
        features = self._global_taps.pop("features")
        pooled = mean_of_segments(self._global_taps.pop("pooled"))
        if features.ndim == 4:  # (N·S, C, H, W)
            features = features.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        return logits, features, pooled

    def _local(self, x: Video) -> tuple[Tensor, Tensor]:
        logits = self.local_branch(x)
        self._local_taps.pop("features")
        return logits, mean_of_segments(self._local_taps.pop("pooled"))

    def _fused(self, pooled_g: Tensor, pooled_l: Tensor) -> Logits:
        return self.fusion(torch.cat([pooled_g, pooled_l], dim=1))

    @torch.no_grad()
    def _heat(self, features: Video) -> Tensor:
        heat = regions.activity(features, self.statistic)
        if self.region == "frame":
            return regions.scaled(heat.flatten(0, 1)[:, None], self.scale).view_as(heat)
        return regions.scaled(heat, self.scale)

    @torch.no_grad()
    def _boxes(self, features: Tensor, x: Video) -> Tensor:
        mask = self._heat(features) > self.threshold
        if self.region == "tube":
            mask = mask.any(1, keepdim=True)
        elif self.region == "frame":
            mask = mask.flatten(0, 1)[:, None]
        cells = regions.bounding_boxes(regions.largest_region(mask))
        pixels = regions.in_pixels(cells, tuple(mask.shape[1:]), tuple(x.shape[2:]), self.min_size)
        return pixels.unflatten(0, (x.shape[0], -1))


class GlobalMaxPool(nn.Module):
    """Returns the maximum of (N, C, ...) over positions: (N, C), or with keepdim (N, C, 1, ...)."""

    def __init__(self, *, keepdim: bool) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(tuple(range(2, x.ndim)), keepdim=self.keepdim)


def _pool_by_maximum(model: nn.Module, info: ModelInfo) -> None:
    """Replaces the global pool `avgpool` of a network by a `GlobalMaxPool`."""
    shape: tuple[int, ...] = ()
    if isinstance(getattr(model, "avgpool", None), nn.Module):
        shape = tuple(dry_run(model, ["avgpool"], info)["avgpool"].shape)
    if math.prod(shape[2:], start=len(shape) > 1) != 1:
        raise ValueError(
            f"pool='max' replaces a global pool `avgpool`, which {type(model).__name__} does not "
            "have; use pool='backbone'"
        )
    model.avgpool = GlobalMaxPool(keepdim=len(shape) > 2)


def _taps(model: nn.Module, after: str, classifier: str) -> Taps:
    """Returns taps that collect f ("features") and the classifier's input ("pooled")."""
    taps = Taps()
    taps.tap_output(model.get_submodule(after), "features")
    taps.tap_input(model.get_submodule(classifier), "pooled")
    return taps


def _info_of_both(info: ModelInfo) -> ModelInfo:
    """Returns the structure of both branches; `features` is in the local branch."""
    stages: dict[str, tuple[str, ...]] = {}
    ends: dict[str, str] = {}
    for branch in ("global_branch", "local_branch"):
        for stage, blocks in info.stages.items():
            stages[f"{branch}.{stage}"] = tuple(f"{branch}.{block}" for block in blocks)
        ends |= {f"{branch}.{block}": f"{branch}.{end}" for block, end in info.branch_ends.items()}
    features = f"local_branch.{info.features}"
    return ModelInfo("fusion", stages, features, info.axes, ends, map_name="hard_crop")
