"""Draws attention (contact sheets, overlays) and computes post-hoc maps.

The names below are imported on first use, because importing matplotlib takes half a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videoattn.explain.choose import Chosen as Chosen
    from videoattn.explain.choose import choose_queries as choose_queries
    from videoattn.explain.choose import motion_position as motion_position
    from videoattn.explain.choose import score_position as score_position
    from videoattn.explain.choose import summarize as summarize
    from videoattn.explain.gates import draw_gate as draw_gate
    from videoattn.explain.overlay import SPATIAL as SPATIAL
    from videoattn.explain.overlay import write_overlay as write_overlay
    from videoattn.explain.pairwise import draw_sheet as draw_sheet
    from videoattn.explain.post_hoc import METHODS as METHODS
    from videoattn.explain.post_hoc import OF_A_LAYER as OF_A_LAYER
    from videoattn.explain.sheet import label_frames as label_frames
    from videoattn.explain.text import write_png as write_png
    from videoattn.explain.words import describe_row as describe_row

_MODULES = {
    "choose": ("Chosen", "choose_queries", "motion_position", "score_position", "summarize"),
    "gates": ("draw_gate",),
    "overlay": ("SPATIAL", "write_overlay"),
    "pairwise": ("draw_sheet",),
    "post_hoc": ("METHODS", "OF_A_LAYER"),
    "sheet": ("label_frames",),
    "text": ("write_png",),
    "words": ("describe_row",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
