"""The marks on a picture: text, the query's ring, arrows. A figure's unit is one pixel, y down."""

from typing import Literal

import numpy as np
from jaxtyping import UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke

Picture = UInt8[np.ndarray, "H W 3"]
Point = tuple[float | int, float | int]  # x, y

INK, SOFT, ACCENT = "#1d1d1f", "#6e6e73", "#00b4d8"
FONT = "DejaVu Sans"  # comes with matplotlib: the same sheet on every machine
RING_RADIUS = 13.0
PNG_LEVEL = 4  # of zlib: half the time of the usual 6, for 6 % more bytes
DOTS_PER_INCH = 72  # so that a point, matplotlib's unit of fonts and lines, is a pixel


def canvas_axes(picture: Picture) -> Axes:
    """Axes over the whole of a new figure that shows the picture pixel by pixel."""
    height, width = picture.shape[:2]
    figure = Figure(figsize=(width / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    figure.add_artist(_Ground(picture))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


class _Ground(Artist):
    """The picture as it is: `figimage` would resample it, at twice the cost of all marks on it."""

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        opaque = np.full((*picture.shape[:2], 1), 255, np.uint8)
        self._image = np.concatenate((picture, opaque), axis=-1)[::-1]  # drawn from the last row up
        self.set_zorder(-1)

    def draw(self, renderer: RendererBase) -> None:
        context = renderer.new_gc()
        renderer.draw_image(context, 0, 0, self._image)
        context.restore()


def to_picture(axes: Axes) -> Picture:
    """The drawn figure, as RGB."""
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_text(
    axes: Axes,
    at: Point,
    text: str,
    *,
    size: int = 15,
    colour: str = INK,
    bold: bool = False,
    align: Literal["left", "center", "right"] = "left",
    room: float | int | None = None,
) -> None:
    """Text with its baseline at `at` (x, y), above the arrows. A dollar sign is a dollar sign.

    Text wider than `room` pixels becomes smaller, by a third at most; then it loses its end.
    """
    drawn = axes.text(
        *at,
        text,
        fontsize=size,
        color=colour,
        fontfamily=FONT,
        fontweight="bold" if bold else "normal",
        ha=align,
        va="baseline",
        parse_math=False,
        path_effects=[withStroke(linewidth=4, foreground="white")],
        zorder=6,
    )
    if room is None or not text:
        return
    width = drawn.get_window_extent().width
    drawn.set_fontsize(size * min(max(0.98 * room / width, 2 / 3), 1))
    while text and drawn.get_window_extent().width > room:
        text = text[:-1].rstrip()
        drawn.set_text(text + "\u2026")


def draw_ring(axes: Axes, at: Point, *, alpha: float = 1.0) -> None:
    """The query's mark: a white ring, legible on any ground, with its centre left open."""
    for line_width, colour in ((7.0, "black"), (3.6, "white")):
        strength = alpha if colour == "white" else 0.7 * alpha
        ring = Circle(at, RING_RADIUS, fill=False, ec=colour, lw=line_width, alpha=strength)
        axes.add_patch(ring).set_zorder(5)
    axes.add_patch(Circle(at, 2.2, fc="white", ec="black", lw=1.0, alpha=alpha)).set_zorder(5)


def draw_frame(axes: Axes, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """An accent around the panel at (y, x) of (height, width) pixels."""
    axes.add_patch(
        Rectangle(
            (corner[1] - 2, corner[0] - 2),
            size[1] + 4,
            size[0] + 4,
            fill=False,
            ec=ACCENT,
            lw=4,
            joinstyle="miter",
        )
    )


def draw_outline(axes: Axes, upper_left: Point, lower_right: Point) -> None:
    """A thin dashed rectangle just inside two corners, legible on any ground."""
    (x0, y0), (x1, y1) = upper_left, lower_right
    for line_width, colour, style in ((3.0, "black", "-"), (1.6, "white", (0, (4, 3)))):
        inset = Rectangle((x0 + 1.5, y0 + 1.5), x1 - x0 - 3, y1 - y0 - 3, fill=False, ls=style)
        inset.set(edgecolor=colour, linewidth=line_width, alpha=0.55 if colour == "black" else 1.0)
        axes.add_patch(inset).set_zorder(2)


def draw_arrow(
    axes: Axes,
    start: Point,
    end: Point,
    *,
    strength: float,
    colour: str = "white",
) -> None:
    """A bowed arrow whose tip is at `end`; strength (0 - 1) makes it wider and more opaque.

    It begins at the ring around `start`; one that would end inside the ring is left out.
    """
    distance = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    if distance <= RING_RADIUS + 6:
        return
    line_width = 1.0 + 2.0 * strength
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>,head_length=0.5,head_width=0.24",
            connectionstyle=f"arc3,rad={0.13 if end[0] < start[0] else -0.13}",
            mutation_scale=10 + 6 * strength,
            shrinkA=RING_RADIUS + 2,
            shrinkB=0,
            lw=line_width,
            color=colour,
            alpha=0.45 + 0.55 * strength,
            capstyle="round",
            joinstyle="miter",
            path_effects=[withStroke(linewidth=line_width + 2.4, foreground="#000000")],
            zorder=3 + strength,
        )
    )
