"""Makes clips, and blocks that are not the identity."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Block = TypeVar("Block", bound=nn.Module)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


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


def assert_equal(
    module: nn.Module, formula: Callable[..., Tensor], inputs: list[Tensor], compute: object = None
) -> None:
    """Compares values, and gradients of inputs and parameters, with a formula in float64."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    module.requires_grad_()
    run = compute or module
    y, expected = run(*inputs), formula(module, *inputs)
    torch.testing.assert_close(y, expected, **EXACT)
    weight = clip(*y.shape, seed=9)
    wanted_of = [*inputs, *module.parameters()]
    got, wanted = (
        torch.autograd.grad((z * weight).sum(), wanted_of, allow_unused=True) for z in (y, expected)
    )
    assert any(g is not None and g.abs().max() > 0 for g in got)
    for one, other in zip(got, wanted, strict=True):
        one, other = (torch.zeros(1).double() if g is None else g for g in (one, other))
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, (other / scale).expand_as(one), **EXACT)
