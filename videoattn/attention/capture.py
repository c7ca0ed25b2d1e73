"""Collects what modules return, or are given, in a forward pass. The package's only hooks of this
kind; `tap` is the permanent form for blocks that read several layers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Captured(dict[str, Tensor]):
    """The tensor of each module, of its last call. calls: how often each module ran."""

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
    """Collects the outputs of the named modules in the forward pass inside the `with`.

        with capture(model, ["layer3", "layer4"]) as outputs:
            model(video)
        outputs["layer4"]

    Outputs that are not tensors are left out.

    Args:
        model: The network.
        names: Dotted names of its modules.
        inputs: Collect each module's first input instead of its output.
        copy: The network continues with a copy, so that a later in-place operation does not change
            what was collected.
        stop: End the forward pass when every module has run.
    """
    captured = Captured()
    remaining = set(names)

    def keep(name: str, x: object) -> Tensor | None:
        captured.calls[name] += 1
        remaining.discard(name)
        if isinstance(x, Tensor):
            captured[name] = x
        if stop and not remaining:
            raise _AllCaptured
        return x.clone() if copy and isinstance(x, Tensor) else None

    handles = [_register(model.get_submodule(name), name, keep, inputs) for name in names]
    try:
        yield captured
    except _AllCaptured:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _register(
    module: nn.Module, name: str, keep: Callable[[str, object], Tensor | None], inputs: bool
) -> RemovableHandle:
    if not inputs:
        return module.register_forward_hook(lambda module, args, output: keep(name, output))

    def before(module: nn.Module, args: tuple[object, ...]) -> tuple[object, ...] | None:
        replaced = keep(name, args[0]) if args else None
        return None if replaced is None else (replaced, *args[1:])

    return module.register_forward_pre_hook(before)


class Tap:
    """A permanent hook that puts a module's output into a shared dictionary.

    An object and not a closure, so that it survives deepcopy, torch.compile and torch.export.
    """

    def __init__(self, store: dict[str, Tensor], name: str) -> None:
        self.store = store
        self.name = name

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.store[self.name] = output


class InputTap(Tap):
    """The same for a module's first input, as a forward pre-hook."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # type: ignore[override]
        self.store[self.name] = inputs[0]
