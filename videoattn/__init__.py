"""A library for video action recognition with attention.

The names below import torch on first use, so that `import videoattn` is quick.
"""

from typing import TYPE_CHECKING

from videoattn import _compat as _compat  # before anything imports torchvision
from videoattn._version import __version__ as __version__

if TYPE_CHECKING:
    from videoattn.attention import insert_attention as insert_attention
    from videoattn.attention import record_attention as record_attention
    from videoattn.recipe.experiment import train as train
    from videoattn.recipe.model import make_model as make_model
    from videoattn.recipe.run import load as load
    from videoattn.weights import load_public as load_public

_MODULES = {
    "insert_attention": "videoattn.attention",
    "load": "videoattn.recipe.run",
    "load_public": "videoattn.weights",
    "make_model": "videoattn.recipe.model",
    "record_attention": "videoattn.attention",
    "train": "videoattn.recipe.experiment",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
