"""A sheet of attention that has no query, whatever its kind."""

from collections.abc import Sequence

from PIL import Image

from videoattn.attention.record import GateMap
from videoattn.explain.boxes import draw_box_sheet
from videoattn.explain.charts import draw_channel_sheet, draw_temporal_sheet
from videoattn.explain.heat import draw_heat_sheet
from videoattn.explain.page import Caption, label_frames
from videoattn.types import Frames


def draw_field(
    frames: Frames,
    field_map: GateMap,
    *,
    title: str,
    sample: int = 0,
    frame_numbers: Sequence[int] | None = None,
    frames_per_second: float | int | None = None,
    input_size: tuple[int, int] | None = None,
) -> Image.Image:
    """The sheet of one sample, as an RGB image: heat over the frames (spatial, mask, pooling), a
    bar below each (temporal), a chart (channel), or the boxes and what they hold.

    frames, title, frame_numbers, frames_per_second: as in `draw_sheet`.
    input_size: (height, width) of the network's input, where boxes are in its pixels and `frames`
        have others.

    Raises:
        ValueError: the sample or the frames do not belong to the map; weights that are not finite
            or not of the kind's shape; a box outside the input.
    """
    caption = Caption(title, label_frames(len(frames), frame_numbers, frames_per_second))
    if field_map.kind == "box":
        return draw_box_sheet(
            frames, field_map, caption=caption, sample=sample, input_size=input_size
        )
    draw = {"channel": draw_channel_sheet, "temporal": draw_temporal_sheet}
    return draw.get(field_map.kind, draw_heat_sheet)(
        frames, field_map, caption=caption, sample=sample
    )
