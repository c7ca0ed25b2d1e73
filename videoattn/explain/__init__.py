"""Pictures of attention: where a pixel of a clip looks, what is gated, masked, pooled, cut out."""

from videoattn.explain.choose import choose_queries
from videoattn.explain.fields import draw_field
from videoattn.explain.overlay import PLACED, write_field_overlay, write_overlay
from videoattn.explain.post_hoc import METHODS, OF_A_LAYER
from videoattn.explain.sheet import draw_sheet

__all__ = [
    "METHODS",
    "OF_A_LAYER",
    "PLACED",
    "choose_queries",
    "draw_field",
    "draw_sheet",
    "write_field_overlay",
    "write_overlay",
]
