"""Temporal segment networks (Wang et al., ECCV 2016, arXiv 1608.00859): a 2-D backbone over
segments of a video, and a consensus of what it says of each.

Segments are the T of the (N, C, T, H, W) that every network here takes, so a video attention block
sees them as it sees frames. Parameters keep torchvision's names.
"""

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from videoattn.attention.functional import attend
from videoattn.attention.insert import VideoView
from videoattn.types import Logits, Video

CONSENSUS = ("mean", "max", "attention")


class TSN(nn.Module):
    """(N, 3, S, H, W) -> logits (N, K): one image network over S segments, then a consensus.

    backbone: a torchvision ResNet; its classifier is replaced.
    consensus: "mean" or "max" of the segments' logits, or "attention": one learned query weighs the
        segments' features before the classifier. It starts as the mean.
    dropout: before the classifier.
    """

    takes_video = True

    def __init__(
        self,
        backbone: ResNet,
        *,
        num_classes: int,
        consensus: str = "mean",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if consensus not in CONSENSUS:
            raise ValueError(f"consensus: {consensus!r} is not one of {', '.join(CONSENSUS)}")
        features = backbone.fc.in_features
        self.conv1, self.bn1, self.relu = backbone.conv1, backbone.bn1, backbone.relu
        self.maxpool, self.avgpool = backbone.maxpool, backbone.avgpool
        self.layer1, self.layer2 = backbone.layer1, backbone.layer2
        self.layer3, self.layer4 = backbone.layer3, backbone.layer4
        self.consensus = consensus
        if consensus == "attention":
            self.query = nn.Parameter(torch.zeros(features))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Video) -> Logits:
        num_clips, num_segments = x.shape[0], x.shape[2]
        self._show_segments(num_segments)
        images = x.transpose(1, 2).flatten(0, 1)  # (N·S, 3, H, W)
        images = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        images = self.layer4(self.layer3(self.layer2(self.layer1(images))))
        features = self.avgpool(images).flatten(1).unflatten(0, (num_clips, num_segments))
        return self._consensus(features)

    def _show_segments(self, num_segments: int) -> None:
        for module in self.modules():
            if isinstance(module, VideoView) and module.num_frames != num_segments:
                module.num_frames = num_segments

    def _consensus(self, features: Tensor) -> Logits:
        """(N, S, C) -> (N, K)."""
        if self.consensus == "attention":
            query = self.query.to(features.dtype).expand(len(features), 1, -1)
            scale = features.shape[2] ** -0.5
            features = attend(query, features, features, scale=scale)
        logits = self.fc(self.dropout(features))
        return logits.amax(1) if self.consensus == "max" else logits.mean(1)
