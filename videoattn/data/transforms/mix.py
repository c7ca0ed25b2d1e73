"""Mixes the clips of a batch: mixup and cutmix."""

import torch
from torch import Tensor, nn


class Mix:
    """Applies mixup or cutmix, each to a fraction of the batches.

    Mixup: Zhang et al., ICLR 2018, with Beta(0.8, 0.8). Cutmix: Yun et al., ICCV 2019.

    Calling it with a video (N, C, T, H, W) and its target, labels (N,) or shares of the classes
    (N, K), returns the mixed video and the shares (N, K). Draws from torch's global generator.

    Args:
        mixup, cutmix: Fractions of the batches; at most 1 together.
        num_clips: Clips per video, which are next to each other in a batch. Clips of one video are
            not mixed with each other.

    Raises:
        ValueError: If a fraction is negative, or their sum is more than 1.
    """

    def __init__(
        self, num_classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, num_clips: int = 1
    ) -> None:
        if min(mixup, cutmix) < 0 or mixup + cutmix > 1:
            raise ValueError(
                f"mixup={mixup} and cutmix={cutmix} are fractions of the batches; need 0 or more "
                "each, and at most 1 together"
            )
        self.num_classes = num_classes
        self.num_clips = num_clips
        self.fractions = (mixup, cutmix)
        self._mixes: list[nn.Module] = []
        if any(self.fractions):
            from torchvision.transforms import v2  # takes as long to import as torch

            self._mixes = [v2.MixUp(alpha=0.8, num_classes=num_classes)]
            self._mixes += [v2.CutMix(num_classes=num_classes)]

    def __call__(self, video: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        drawn = float(torch.rand(()))
        if drawn >= sum(self.fractions):
            one_hot = (
                target if target.ndim == 2 else nn.functional.one_hot(target, self.num_classes)
            )
            return video, one_hot.float()
        from torchvision import tv_tensors

        mix = self._mixes[drawn >= self.fractions[0]]
        # torchvision takes five axes for a video; it crops the last two in any case. It mixes
        # neighbors, so clips of one video are moved apart first.
        order = torch.arange(len(video)).view(-1, self.num_clips).T.flatten()
        if self.num_clips > 1:
            video, target = video[order], target[order]
        mixed, target = mix(tv_tensors.Video(video), target)
        mixed = mixed.as_subclass(Tensor)
        if self.num_clips > 1:
            mixed, target = mixed[order.argsort()], target[order.argsort()]
        return mixed, target
