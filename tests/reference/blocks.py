"""Makes clips, and blocks that are not the identity."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Block = TypeVar("Block", bound=nn.Module)


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(block: Block) -> Block:
    """Gives a block random weights, so that it is not the identity; float64, eval mode."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.3
        tensor.data = values.abs() + 0.5 if name.endswith("running_var") else values
    return block.double().eval()


def permuted(video: Tensor, seed: int = 0) -> Tensor:
    """Permutes the positions of a clip."""
    order = torch.randperm(video.flatten(2).shape[2], generator=torch.Generator().manual_seed(seed))
    return video.flatten(2)[..., order].view_as(video)


def with_gradient(block: nn.Module, loss: Tensor) -> set[str]:
    """Returns the parameters with a nonzero gradient; checks that all are finite."""
    parameters = dict(block.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)
    return {
        name for name, g in zip(parameters, gradients, strict=True) if g is not None and g.any()
    }


def bfloat16_error(block: nn.Module, *inputs: Tensor) -> float:
    """Returns the error of the output under autocast, relative to the largest output."""
    block, inputs = block.float(), tuple(x.float() for x in inputs)
    with torch.no_grad():
        expected = block(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            got = block(*inputs)
    assert got.dtype == expected.dtype
    return float((got - expected).abs().max() / expected.abs().max())
