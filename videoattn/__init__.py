"""Video action recognition whose subject is attention."""

from videoattn import _compat as _compat  # before anything imports torchvision

__version__ = "0.1.0"
