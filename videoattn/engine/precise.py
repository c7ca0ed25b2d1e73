"""Recomputes the running statistics of batch norms with fixed weights (precise BN)."""

from dataclasses import dataclass

import torch
from torch import nn

from videoattn.engine.batches import Batches, ToVideo
from videoattn.engine.parallel import Parallel
from videoattn.engine.precision import Precision, autocast, resolve_precision


@dataclass(frozen=True)
class PreciseBatchNorm:
    """Replaces running averages by averages over B batches that all use the same weights.

    The moving averages of a batch norm come from augmented clips, and from a time when the weights
    were still changing. Here μ = Σ μ_b / B and σ² = Σ σ_b² / B (unbiased). While they are computed,
    norms use the statistics of the batch, as in training (Wu & Johnson, arXiv 2105.07576,
    section 3). With augmented clips this equals PySlowFast's BN.USE_PRECISE_STATS.

    Args:
        batches: Shuffled training batches.
        num_clips: Stop after this many clips, summed over the ranks.
    """

    batches: Batches
    num_clips: int

    def recompute(
        self, model: nn.Module, to_video: ToVideo, precision: Precision, parallel: Parallel
    ) -> None:
        """Recomputes the statistics of norms in training mode, if any, and calls `model.eval()`.

        Raises:
            ValueError: If a rank could not decode a single clip.
        """
        norms = batch_norms(model, training=True)
        if not norms:  # all are frozen
            return
        dtype = resolve_precision(precision, parallel.device)
        momenta = [norm.momentum for norm in norms]
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # average over all batches
        num_clips = 0
        try:
            for batch in self.batches.epoch(0):
                if len(batch.frames):
                    with torch.no_grad(), autocast(dtype, parallel.device):
                        model(to_video(batch.frames.flatten(0, 1)))
                num_clips += batch.frames.shape[0] * batch.frames.shape[1]
                if num_clips * parallel.world_size >= self.num_clips:
                    break
            if not all(parallel.gather(num_clips)):
                raise ValueError("precise batch norm: a process could not decode any clip")
            parallel.average_buffers(model)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            model.eval()


def batch_norms(
    model: nn.Module, *, training: bool = False
) -> list[nn.modules.batchnorm._BatchNorm]:
    """Returns the batch norms with running statistics; if `training`, those in training mode."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and (module.training or not training)
    ]
