"""Precise batch norm: its statistics taken anew, over training clips seen as in testing."""

from dataclasses import dataclass

import torch
from torch import nn

from videoattn.engine.batches import Batches, ToVideo
from videoattn.engine.parallel import Parallel
from videoattn.engine.precision import Precision, autocast, resolve_precision


@dataclass(frozen=True)
class PreciseBatchNorm:
    """What a batch norm knows in testing is a moving average over clips that were augmented and
    mixed, of weights that moved. Here its mean and variance are the averages of those of B batches,
    all of the same weights: μ = Σ μ_b / B, σ² = Σ σ_b² / B (σ_b² without bias), each layer behind
    norms that use the batch, as in training (Wu & Johnson, arXiv 2105.07576, section 3). Of
    augmented clips it is PySlowFast's BN.USE_PRECISE_STATS.

    batches: shuffled. num_clips: from so many on, counted over all processes, it is enough.
    """

    batches: Batches
    num_clips: int

    def recompute(
        self, model: nn.Module, *, to_video: ToVideo, precision: Precision, distributed: Parallel
    ) -> None:
        """Of the norms that are in training mode. The model is left in evaluation mode.

        Raises:
            ValueError: when a process could not decode one clip.
        """
        norms = batch_norms(model, training=True)
        if not norms:  # all are frozen
            return
        dtype = resolve_precision(precision, distributed.device)
        was = [norm.momentum for norm in norms]
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the average of all batches
        seen = 0
        try:
            for batch in self.batches.epoch(0):
                if len(batch.frames):
                    with torch.no_grad(), autocast(dtype, distributed.device):
                        model(to_video(batch.frames.flatten(0, 1)))
                seen += batch.frames.shape[0] * batch.frames.shape[1]
                if seen * distributed.world_size >= self.num_clips:
                    break
            if not all(distributed.gather(seen)):
                raise ValueError("precise batch norm: a process could decode no training clip")
            distributed.average_buffers(model)
        finally:
            for norm, momentum in zip(norms, was, strict=True):
                norm.momentum = momentum
            model.eval()


def batch_norms(
    model: nn.Module, *, training: bool = False
) -> list[nn.modules.batchnorm._BatchNorm]:
    """Those that keep statistics; with `training`, of those in training mode."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and (module.training or not training)
    ]
