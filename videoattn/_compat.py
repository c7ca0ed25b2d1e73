"""Lets `import torchvision` succeed where its compiled operators cannot load.

torchvision registers fake kernels for `torchvision::nms` when it is imported. If its C++ extension
does not match the installed torch, the operator's schema is not declared, and the import fails with
"operator torchvision::nms does not exist". This happens with mismatched wheels: torchvision
0.28, for example, has no CPU build. Declaring the two schemas first is enough, because this project
uses only Python code of torchvision (`transforms.v2`, `models`).

The schemas are declared at the first `import torchvision`, so that `import videoattn` and
`videoattn --help` do not load torch.
"""

import ctypes
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_declared: list[object] = []  # garbage collection of a torch Library removes its schemas


def _extension_loads(package: Path) -> bool:
    """Returns whether torchvision's C++ extension can be loaded with the installed torch."""
    libraries = sorted(package.glob("_C.*"))
    try:
        for library in libraries:
            ctypes.CDLL(str(library))
    except OSError:
        return False
    return bool(libraries)


class _BeforeTorchvision:
    """A meta path finder that declares the operators, if needed, before torchvision is imported."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name)
        if spec is None or spec.origin is None:
            return spec

        import torch  # loads the libraries that the extension needs

        if not _extension_loads(Path(spec.origin).parent):
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _declared.append(library)
        return spec


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, _BeforeTorchvision())
