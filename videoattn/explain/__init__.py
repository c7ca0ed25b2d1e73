"""Pictures of attention: where a pixel of a clip looks, in every frame."""

from videoattn.explain.choose import choose_queries
from videoattn.explain.overlay import write_overlay
from videoattn.explain.sheet import draw_sheet

__all__ = ["choose_queries", "draw_sheet", "write_overlay"]
