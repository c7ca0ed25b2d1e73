"""Writes the page of a run's test videos, the most wrong first, with a confusion matrix."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from videoattn.explain.explorer.pack import MEGABYTE, QUALITY, Writer, palette
from videoattn.files import write_whole
from videoattn.types import Frames

STRIP_FRAMES, STRIP_HEIGHT = 8, 96
BUDGET = 32  # megabytes of strips; further videos get none
SCRIPTS = ("common.js", "words.js", "store.js", "paint.js", "errors.js")


class Answer(NamedTuple):
    """A network's answer for one labeled video.

    Args:
        name: The video, as the page shows it.
        label, guess: The indices of the true and the predicted class.
        label_probability, probability: Their probabilities.
        frames: Some frames of the video, or None.
        explorer: The address of its explorer page relative to this page, or "".
        command: The command that writes an explorer page.
    """

    name: str
    label: int
    guess: int
    label_probability: float
    probability: float
    frames: Frames | None = None
    explorer: str = ""
    command: str = ""

    @property
    def wrongness(self) -> tuple[float, float]:
        """Returns the sort key of errors: the probability of the guess minus that of the label;
        for ties, the negative probability of the label."""
        return self.probability - self.label_probability, -self.label_probability


def write_errors(
    path: Path, answers: Iterable[Answer], *, run: str, about: str, class_names: Sequence[str]
) -> None:
    """Writes the page of errors as one HTML file.

    Args:
        answers: The answers in the order of the page; an iterator may decode frames lazily.
        run: The name of the run.
        about: A line about the run, such as its accuracy.
    """

    def write(file: Any) -> None:
        writer, pictures, videos = Writer(file, "errors.html"), bytearray(), []
        for answer in answers:
            video = answer._asdict() | {"at": len(pictures), "size": 0}
            frames = video.pop("frames")
            if frames is not None and len(pictures) < BUDGET * MEGABYTE:
                pictures += _strip(frames)
                video["size"] = len(pictures) - video["at"]
            videos.append(video)
        index: dict[str, Any] = {"run": run, "about": about, "class_names": list(class_names)}
        index |= {"videos": videos, "palette": palette()}
        writer.write_page(SCRIPTS, index | {"blob": writer.write_blob(bytes(pictures))})

    write_whole(path, write)


def _strip(frames: Frames) -> bytes:
    """Returns at most eight frames side by side, as WebP."""
    chosen = frames[:: max(len(frames) // STRIP_FRAMES, 1)][:STRIP_FRAMES]
    height, width = chosen.shape[2:]
    size = (max(round(width * STRIP_HEIGHT / height), 1), STRIP_HEIGHT)
    strip = Image.new("RGB", (size[0] * len(chosen), STRIP_HEIGHT))
    for number, frame in enumerate(chosen.permute(0, 2, 3, 1).cpu().numpy()):
        strip.paste(Image.fromarray(frame).resize(size), (number * size[0], 0))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=QUALITY)
    return file.getvalue()
