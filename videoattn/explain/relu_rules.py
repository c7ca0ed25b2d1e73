"""Changes the backward pass of ReLUs: guided backpropagation and deconvnets."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

EDGES = (
    "Passes positive gradients only. Such maps show edges of the clip, and may hardly depend on "
    "the class or the weights (Adebayo et al. 2018, Nie et al. 2018)"
)
OTHER_ACTIVATIONS = ("Silu", "Gelu", "LeakyRelu", "Elu", "Hardswish", "Hardsigmoid", "Softplus")


@contextmanager
def relu_rule(model: nn.Module, *, masked: bool) -> Iterator[None]:
    """Lets every nn.ReLU that runs inside the `with` pass positive gradients only.

    Args:
        masked: Only pass them where the ReLU's input is positive (guided backpropagation);
            otherwise pass them everywhere (deconvnet).
    """

    def rule(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _RuledReLU.apply(inputs[0], masked)

    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    in_place = [module for module in relus if module.inplace]
    with ExitStack() as stack:
        for module in relus:  # before the hooks that send the output through an attention block
            stack.enter_context(module.register_forward_hook(rule, prepend=True))
        for module in in_place:
            module.inplace = False  # the rule needs the input
            stack.callback(setattr, module, "inplace", True)
        yield


def check_rule(score: Tensor) -> None:
    """Raises a ValueError unless every activation in the graph is a ReLU with `relu_rule`."""
    ruled, plain, others, visited, nodes = 0, 0, set(), set(), [score.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        name = node.name().removesuffix("0").removesuffix("Backward")
        ruled += name == _RuledReLU.__name__
        plain += name == "Relu"
        others |= {name} & set(OTHER_ACTIVATIONS)
        nodes += [following for following, _ in node.next_functions]
    if others or plain or not ruled:
        found = ", ".join(sorted(others)) or f"{plain} ReLU calls outside nn.ReLU modules"
        raise ValueError(
            f"got a network with {found}; need nn.ReLU modules only; use saliency or a CAM"
        )


class _RuledReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, masked: bool) -> Tensor:
        ctx.save_for_backward(x > 0 if masked else torch.ones_like(x, dtype=torch.bool))
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (passes,) = ctx.saved_tensors
        return gradient.clamp_min(0) * passes, None
