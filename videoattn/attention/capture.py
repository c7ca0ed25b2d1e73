"""Collects the outputs or inputs of modules, in one forward pass (`capture`) or in all (`Taps`)."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn


class Captured(dict[str, Tensor]):
    """The last tensor of each module by name; `calls` counts how often each module ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()


class _AllCaptured(Exception):
    pass


@contextmanager
def capture(
    model: nn.Module,
    names: Sequence[str],
    *,
    inputs: bool = False,
    copy: bool = False,
    stop: bool = False,
) -> Iterator[Captured]:
    """Collects the tensors that the named modules return in the forward pass inside the `with`.

        with capture(model, ["layer3", "layer4"]) as outputs:
            model(video)
        outputs["layer4"]

    Args:
        names: Dotted names of modules of the network.
        inputs: Collect each module's first input instead of its output.
        copy: Pass a copy on to the network, so that a later in-place operation does not change
            what was collected.
        stop: End the forward pass when every module has run.
    """
    captured = Captured()
    remaining = set(names)

    def keep(name: str, module: nn.Module, args: tuple[object, ...], *output: object) -> Any:
        if inputs and not args:
            return None
        captured.calls[name] += 1
        remaining.discard(name)
        x = args[0] if inputs else output[0]
        if isinstance(x, Tensor):
            captured[name] = x
        if stop and not remaining:
            raise _AllCaptured
        if not copy or not isinstance(x, Tensor):
            return None
        return (x.clone(), *args[1:]) if inputs else x.clone()

    with ExitStack() as hooks, suppress(_AllCaptured):
        for name in names:
            module = model.get_submodule(name)
            register = module.register_forward_pre_hook if inputs else module.register_forward_hook
            hooks.enter_context(register(partial(keep, name)))
        yield captured


class Taps:
    """Carries tensors from modules to a block that reads them later in the same forward pass.

    The hooks survive deepcopy, torch.compile and torch.export, all of which would copy a dictionary
    that is an attribute of a module.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def pop(self, key: str) -> Tensor:
        """Returns and removes a tensor; raises a ValueError if its module has not run."""
        if key not in self.tensors:
            raise ValueError(f"{key!r} did not run in this forward pass; run the whole network")
        return self.tensors.pop(key)

    def tap_output(self, module: nn.Module, key: str) -> None:
        """Collects the module's output in every forward pass."""
        module.register_forward_hook(_Tap(self, key))

    def tap_input(self, module: nn.Module, key: str) -> None:
        """Collects the module's first input in every forward pass."""
        module.register_forward_pre_hook(_Tap(self, key))


@dataclass(eq=False)
class _Tap:
    """A hook that keeps the output of a module or, as a pre-hook, its first input."""

    taps: Taps
    key: str

    def __call__(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None
    ) -> None:
        self.taps.tensors[self.key] = inputs[0] if output is None else output
