"""Video action recognition whose subject is attention."""

from typing import TYPE_CHECKING

from videoattn import _compat as _compat  # before anything imports torchvision
from videoattn._version import __version__ as __version__

if TYPE_CHECKING:
    from videoattn.recipe.run import load as load
    from videoattn.weights import load_public as load_public


def __getattr__(name: str) -> object:
    """`videoattn.load` and `videoattn.load_public`, which import torch when they are used."""
    if name == "load":
        from videoattn.recipe.run import load

        return load
    if name == "load_public":
        from videoattn.weights import load_public

        return load_public
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
