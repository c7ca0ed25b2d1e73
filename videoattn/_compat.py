"""Lets `import torchvision` succeed where its compiled operators cannot load.

torchvision registers Python-side fake kernels for `torchvision::nms` when it is imported. If its
C++ extension does not match the installed torch (there is no CPU build of torchvision 0.28, and
users meet the same with mismatched wheels), the operator's schema was never declared and the
import dies with "operator torchvision::nms does not exist". Declaring the two schemas first is
enough: everything that this project takes from torchvision (`transforms.v2`, `models`) is Python.

The repair waits for the first `import torchvision`, so that `import videoattn`, and with it
`videoattn --help`, need not load torch.
"""

import ctypes
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_declared: list[object] = []  # a torch Library that is collected takes its schemas with it


def _extension_loads(package: Path) -> bool:
    """Whether torchvision's own C++ extension can be loaded beside the installed torch."""
    libraries = sorted(package.glob("_C.*"))
    try:
        for library in libraries:
            ctypes.CDLL(str(library))
    except OSError:
        return False
    return bool(libraries)


class _BeforeTorchvision:
    """A finder that finds nothing: it declares the operators just before torchvision is found."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec is None or spec.origin is None:
            return spec

        import torch  # its libraries must be in the process before the extension is tried

        if not _extension_loads(Path(spec.origin).parent):
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _declared.append(library)
        return spec


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
