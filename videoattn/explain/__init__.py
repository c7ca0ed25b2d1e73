"""Draws attention (contact sheets, overlays) and computes post-hoc maps."""

from videoattn.explain.choose import (
    Chosen,
    choose_queries,
    motion_position,
    score_position,
    summarize,
)
from videoattn.explain.gates import draw_gate
from videoattn.explain.marks import write_png
from videoattn.explain.overlay import SPATIAL, write_overlay
from videoattn.explain.pairwise import draw_sheet
from videoattn.explain.post_hoc import METHODS, OF_A_LAYER
from videoattn.explain.sheet import label_frames
from videoattn.explain.words import describe_row

__all__ = [
    "METHODS",
    "OF_A_LAYER",
    "SPATIAL",
    "Chosen",
    "choose_queries",
    "describe_row",
    "draw_gate",
    "draw_sheet",
    "label_frames",
    "motion_position",
    "score_position",
    "summarize",
    "write_overlay",
    "write_png",
]
