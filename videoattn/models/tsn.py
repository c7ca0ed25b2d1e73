"""The temporal segment network (Wang et al., ECCV 2016, arXiv 1608.00859): a 2-D network runs on
each segment of a video, and a consensus combines the results. With `shift_div` this is TSM (Lin et
al., ICCV 2019, arXiv 1811.08383): some channels move to the next or the previous segment.

Segments are the T of the input (N, C, T, H, W), so a video attention block treats them as frames.
Parameters keep torchvision's names.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from videoattn.attention.functional import attend
from videoattn.attention.insert import VideoView
from videoattn.errors import one_of
from videoattn.models.structure import residual_info
from videoattn.types import Logits, Video

CONSENSUS = ("mean", "max", "attention")
SHIFT_PLACES = ("residual", "block")


class TSN(nn.Module):
    """An image network on S segments, then a consensus: (N, 3, S, H, W) -> logits (N, K).

    Args:
        backbone: A torchvision ResNet or a network whose modules have the same names, or the
            constructor of one. Its classifier is replaced.
        num_classes: K.
        consensus: "mean" or "max" of the segments' logits, or "attention": a learned query weights
            the segments' features before the classifier. It starts as the mean.
        dropout: Dropout before the classifier.
        shift_div: 1/shift_div of the input channels of a residual block come from the next segment,
            and 1/shift_div from the previous one (zeros beyond the ends). None disables shifts.
        shift_place: Shift before the first convolution of the block only ("residual", as in the
            paper), or before its shortcut too ("block"). In networks with 23 blocks in a stage,
            every second block shifts.

    Raises:
        ValueError: If an option does not exist, or `shift_div` is below 2.
    """

    def __init__(
        self,
        backbone: nn.Module | Callable[[], nn.Module],
        *,
        num_classes: int,
        consensus: str = "mean",
        dropout: float = 0.5,
        shift_div: int | None = None,
        shift_place: str = "residual",
    ) -> None:
        super().__init__()
        backbone = backbone if isinstance(backbone, nn.Module) else backbone()
        get = backbone.get_submodule
        classifier = get("fc")
        assert isinstance(classifier, nn.Linear)
        features = classifier.in_features
        self.conv1, self.bn1, self.relu = get("conv1"), get("bn1"), get("relu")
        self.maxpool, self.avgpool = get("maxpool"), get("avgpool")
        self.layer1, self.layer2 = _stage(backbone, "layer1"), _stage(backbone, "layer2")
        self.layer3, self.layer4 = _stage(backbone, "layer3"), _stage(backbone, "layer4")
        self.consensus = one_of("consensus", consensus, CONSENSUS)
        if consensus == "attention":
            self.query = nn.Parameter(torch.zeros(features))
        self._shift = TemporalShift(shift_div) if shift_div is not None else None
        self._place_shifts(shift_place)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.info = residual_info(self)

    def forward(self, x: Video) -> Logits:
        self._set_num_segments(x.shape[2])
        images = x.transpose(1, 2).flatten(0, 1)  # (N·S, 3, H, W)
        images = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        images = self.layer4(self.layer3(self.layer2(self.layer1(images))))
        return self._classify(images, x.shape[2])

    def forward_head(self, features: Video) -> Logits:
        """Returns the logits for the output of layer4, as (N, C, S, H, W)."""
        return self._classify(features.transpose(1, 2).flatten(0, 1), features.shape[2])

    def _place_shifts(self, place: str) -> None:
        one_of("shift_place", place, SHIFT_PLACES)
        if self._shift is None:
            return
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        step = 2 if max(len(stage) for stage in stages) >= 23 else 1
        for stage in stages:
            for block in list(stage)[::step]:
                # A hook, so that parameters keep torchvision's names.
                shifted = block.get_submodule("conv1") if place == "residual" else block
                shifted.register_forward_pre_hook(self._shift)

    def _set_num_segments(self, num_segments: int) -> None:
        if self._shift is not None:
            self._shift.num_segments = num_segments
        for module in self.modules():
            if isinstance(module, VideoView) and module.num_frames != num_segments:
                module.num_frames = num_segments

    def _classify(self, images: Tensor, num_segments: int) -> Logits:
        """Combines the segments: (N·S, C, H', W') -> (N, K)."""
        features = self.avgpool(images).flatten(1).unflatten(0, (-1, num_segments))  # (N, S, C)
        if self.consensus == "attention":
            query = self.query.to(features.dtype).expand(features.shape[0], 1, -1)
            scale = features.shape[2] ** -0.5
            features = attend(query, features, features, scale=scale)
        logits = self.fc(self.dropout(features))
        return logits.amax(1) if self.consensus == "max" else logits.mean(1)


def _stage(backbone: nn.Module, name: str) -> nn.Sequential:
    stage = backbone.get_submodule(name)
    assert isinstance(stage, nn.Sequential)
    return stage


class TemporalShift:
    """A forward pre-hook that shifts channels of images (N·S, C, H, W) between segments.

    The first C // div channels come from the next segment, the following C // div from the
    previous one, with zeros beyond the ends.

    Raises:
        ValueError: If `div` is below 2, which would leave no channel in its segment.
    """

    def __init__(self, div: int) -> None:
        if div < 2:
            raise ValueError(f"shift_div: got {div}; need 2 or more (8 is the paper's), or none")
        self.div = div
        self.num_segments = 1

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        images = inputs[0]
        # Channels last, so that the result is channels-last in memory, as the convolution reads it.
        video = images.unflatten(0, (-1, self.num_segments)).movedim(2, -1)  # (N, S, H, W, C)
        fold = images.shape[1] // self.div
        following, previous, stay = video.split([fold, fold, images.shape[1] - 2 * fold], dim=-1)
        empty = torch.zeros_like(following[:, :1])
        following = torch.cat([following[:, 1:], empty], dim=1)
        previous = torch.cat([empty, previous[:, :-1]], dim=1)
        return torch.cat([following, previous, stay], dim=-1).movedim(-1, 2).flatten(0, 1)
