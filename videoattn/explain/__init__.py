"""Draws attention (contact sheets, overlays) and computes post-hoc maps."""

from videoattn.explain.choose import Chosen as Chosen
from videoattn.explain.choose import choose_queries as choose_queries
from videoattn.explain.choose import motion_position as motion_position
from videoattn.explain.choose import score_position as score_position
from videoattn.explain.choose import summarize as summarize
from videoattn.explain.gates import draw_gate as draw_gate
from videoattn.explain.marks import write_png as write_png
from videoattn.explain.overlay import SPATIAL as SPATIAL
from videoattn.explain.overlay import write_overlay as write_overlay
from videoattn.explain.pairwise import describe_row as describe_row
from videoattn.explain.pairwise import draw_sheet as draw_sheet
from videoattn.explain.post_hoc import METHODS as METHODS
from videoattn.explain.post_hoc import OF_A_LAYER as OF_A_LAYER
from videoattn.explain.sheet import label_frames as label_frames
