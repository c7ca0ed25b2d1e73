"""Writes maps, frames and facts of clips, with the page that draws them, as one HTML file.

The file has base64 chunks of at most 4 MiB, and after them an index in JSON. Each map, and the
frames of each clip, start a new chunk. Chunks are written one by one, so memory holds the maps of
one clip. File names and class names are in the index only. The index escapes markup, and the page
shows names as text. Its content-security policy allows no connection.
"""

import base64
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from videoattn._version import __version__
from videoattn.attention.archive import MapArchive
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.explain import render
from videoattn.explain.choose import summarize
from videoattn.explain.explorer.encode import Encoder, encode_field
from videoattn.explain.gates import LEAST_SPAN
from videoattn.explain.sheet import label_frames
from videoattn.explain.words import SINK, describe_gate, gate_noun, grid_note
from videoattn.files import write_whole
from videoattn.types import Frames, Grid

FORMAT = "videoattn-explorer/1"
CHUNK = 3 * 2**20  # bytes, which are 4 MiB of base64
MEGABYTE = 10**6
BUDGET, MOST_BUDGET = 32, 384  # megabytes; a browser needs twice the file in memory
SLOW_BUDGET, SECONDS_PER_MEGABYTE = 96, 11 / 320
LONGEST_SIDE, QUALITY = 512, 80  # of frames, as WebP
SCRIPTS = ("common.js", "words.js", "store.js", "paint.js", "state.js", "views.js", "page.js")


class Budget(NamedTuple):
    """Limits on the content of a file.

    Args:
        megabytes: Size of maps and frames before base64, which adds a third.
        num_clips: The number of archives that share it.
        layer: Maps whose names start with this come first.
        compact: Store queries and keys in int8.
    """

    megabytes: float | int = BUDGET
    num_clips: int = 1
    layer: str = ""
    compact: bool = False


def write_explorer(path: Path, archives: Iterable[MapArchive], budget: Budget) -> list[str]:
    """Writes the explorer page of some clips, and returns a note for each omission.

    Args:
        archives: For each clip, its complete maps, its frames, and facts: `video`, `numbers` and
            `fps` of the frames, `run`, `network`, `input` (T, H, W), `classes` (pairs of name and
            probability, most likely first), `truth` or None, and `queries`: (frame, y, x, title,
            reason) in the network's input. Maps named "method/class" become one map with a choice
            of classes. `costs`, if any, has a note for maps by name.

    Raises:
        ValueError: If the budget is too large for a browser, or there is no archive.
    """
    if not 0 < budget.megabytes <= MOST_BUDGET:
        raise ValueError(
            f"budget: got {budget.megabytes:g} MB; browsers open at most {MOST_BUDGET}: choose "
            "fewer layers or clips"
        )
    missing: list[str] = []

    def write(file: Any) -> None:
        writer = Writer(file)
        clips: dict[str, dict[str, Any]] = {}
        scenes = []
        for archive in archives:
            scene, left_out = _write_scene(writer, archive, clips, budget)
            scenes.append(scene)
            missing.extend(left_out)
        if not scenes:
            raise ValueError("archives: got none; need one for each clip")
        index = {"palette": palette(), "clips": list(clips.values()), "scenes": scenes}
        writer.write_page(SCRIPTS, index)

    write_whole(path, write)
    return missing


class Writer:
    """Writes the page: the HTML before the data, the chunks, the index, the scripts."""

    def __init__(self, file: Any, page: str = "page.html") -> None:
        self.file = file
        self.num_chunks = 0
        whole = _text("shell.html").replace("<page></page>\n", _text(page))
        before, self.after = whole.split("<data></data>\n")
        self.write(before.replace("/*css*/", _text("page.css")))

    def write(self, text: str) -> None:
        self.file.write(text.encode())

    def write_blob(self, data: bytes) -> dict[str, int]:
        """Writes bytes as chunks; returns the first chunk, the chunk count, the size and CRC-32."""
        first = self.num_chunks
        for start in range(0, len(data), CHUNK):
            self.write(f'<script type="text/plain" data-chunk="{self.num_chunks}">')
            self.file.write(base64.b64encode(data[start : start + CHUNK]))
            self.write("</script>\n")
            self.num_chunks += 1
        count = self.num_chunks - first
        return {"chunk": first, "count": count, "bytes": len(data), "crc": zlib.crc32(data)}

    def write_page(self, scripts: tuple[str, ...], index: Mapping[str, Any]) -> None:
        about: dict[str, Any] = {"format": FORMAT, "version": __version__, **index}
        self.write(f'<script type="application/json" id="index">{to_json(about)}</script>\n')
        self.write(self.after.replace("/*js*/", "\n".join(map(_text, scripts))))


def _text(name: str) -> str:
    return files("videoattn.explain.explorer").joinpath(name).read_text(encoding="utf-8")


def to_json(value: object) -> str:
    """Returns JSON that is safe inside a script element: escapes markup, and writes NaN as null."""
    text = json.dumps(_finite(value), separators=(",", ":"))  # ASCII, so without U+2028 and U+2029
    return re.sub(r"[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def palette() -> dict[str, Any]:
    """Returns the colors and limits that the page shares with the contact sheets."""

    def table(name: str) -> str:
        colors = (render.color_table(name) * 255).round().byte().numpy().tobytes()
        return base64.b64encode(colors).decode()

    return {
        "sequential": table(render.SEQUENTIAL),
        "diverging": table(render.DIVERGING),
        "strongest_alpha": render.STRONGEST_ALPHA,
        "saturation": render.FRAME_SATURATION,
        "least_range": render.LEAST_RANGE,
        "least_span": LEAST_SPAN,
        "sink": SINK,
    }


def _write_scene(
    writer: Writer, archive: MapArchive, clips: dict[str, dict[str, Any]], budget: Budget
) -> tuple[dict[str, Any], list[str]]:
    """Writes the maps of a clip, and its frames if no earlier scene has them. Returns the scene's
    entry in the index, and a note for each omission."""
    assert archive.frames is not None
    about = archive.about
    sha256 = hashlib.sha256(archive.frames.contiguous().numpy().tobytes()).hexdigest()
    if sha256 not in clips:
        clips[sha256] = _write_frames(writer, archive.frames, about) | {"sha256": sha256}
    num_frames, height, width = about["input"]
    grid = (num_frames, height, width)
    scene = {key: about[key] for key in ("video", "run", "network", "classes", "truth")}
    scene["clip"] = list(clips).index(sha256)
    keys = ("frame", "y", "x", "title", "reason")
    scene["queries"] = [
        dict(zip(keys, (t, (y + 0.5) / height, (x + 0.5) / width, *words), strict=True))
        for t, y, x, *words in about["queries"]
    ]
    room = budget.megabytes * MEGABYTE / budget.num_clips - clips[sha256]["blob"]["bytes"]
    fields, missing = _encode_fields(archive, grid)
    maps = [(meta | {"blob": writer.write_blob(data)}) for meta, data in fields]
    room -= sum(len(data) for _, data in fields)
    pairwise, left_out = _write_pairwise(writer, archive, grid, room, budget)
    order = {name: at for at, name in enumerate(archive.maps)}
    scene["maps"] = sorted(pairwise, key=lambda meta: order[meta["name"]]) + maps
    for meta in scene["maps"]:
        meta["note"] += about.get("costs", {}).get(meta["name"], "")
    scene["missing"] = missing + left_out
    return scene, [f"{about['video']}: {text}" for text in missing + left_out]


def _write_frames(writer: Writer, frames: Frames, about: Mapping[str, Any]) -> dict[str, Any]:
    height, width = frames.shape[2:]
    factor = min(LONGEST_SIDE / max(height, width), 1.0)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    pictures = []
    for frame in frames.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(frame).resize(size).save(file, "WEBP", quality=QUALITY)
        pictures.append(file.getvalue())
    labels = label_frames(about["numbers"], about["fps"])
    return {
        "width": size[0],
        "height": size[1],
        "labels": [[n, time, f"Frame {n}{time and f', {time}'}"] for n, time in labels],
        "sizes": [len(picture) for picture in pictures],
        "blob": writer.write_blob(b"".join(pictures)),
    }


def _encode_fields(
    archive: MapArchive, grid: Grid
) -> tuple[list[tuple[dict[str, Any], bytes]], list[str]]:
    """Returns the encoded maps without a query, with one per method for all classes, and notes."""
    fields: dict[str, tuple[dict[str, Any], bytes]] = {}
    missing = []
    for full, found in archive.maps.items():
        if not isinstance(found, GateMap):
            continue
        name, _, class_name = full.partition("/")
        try:
            known, data = encode_field(found, (grid[1], grid[2]))
        except ValueError as error:
            missing.append(f"{name}: {error}")
            continue
        word = ("class", "classes") if class_name else ("weighting", "weightings")
        known |= {"name": name, "head_word": word[0], "head_words": word[1]}
        known |= {"description": describe_gate(found), "noun": gate_noun(found), "special": []}
        spatial = found.kind not in ("channel", "temporal", "box")
        known["note"] = grid_note(tuple(known["grid_k"]), grid) if spatial else ""
        if class_name and name in fields:
            earlier, before = fields[name]
            known["head_names"] = [*earlier["head_names"], class_name]
            known["heads"] = earlier["heads"] + 1
            known["peaks"] = [*earlier["peaks"], known["peak"]]
            data = before + data
        elif class_name:
            known |= {"head_names": [class_name], "peaks": [known["peak"]]}
        fields[name] = (known, data)
    return list(fields.values()), missing


def _write_pairwise(
    writer: Writer, archive: MapArchive, grid: Grid, room: float, budget: Budget
) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes the pairwise maps that fit into `room` bytes, the most important first, and returns
    their entries in the index, and a note for each omission."""
    found = {name: m for name, m in archive.maps.items() if isinstance(m, PairwiseMap)}
    written, missing = [], []
    for name in by_importance(list(found), budget.layer):
        one = found[name]
        try:
            if not one.is_whole:
                size = f"{math.prod(one.grid_q):,} x {math.prod(one.grid_k):,}"
                raise ValueError(f"all rows of a {size} map are too many")
            summary = summarize(one)
            if not (summary.received.isfinite().all() and math.isfinite(summary.top)):
                raise ValueError("some weights are not finite")
            encoders = [Encoder(one, compact=budget.compact)]
            if encoders[0].num_heads > 1:
                encoders.append(Encoder(one, compact=budget.compact, mean=True))
            chosen = next((e for e in encoders if e.num_bytes <= room), None)
            if chosen is None:
                smallest = min(e.num_bytes for e in encoders) / MEGABYTE
                raise ValueError(f"needs {smallest:.1f} MB of a budget that is used up")
        except ValueError as error:
            missing.append(f"{name}: {error}")
            continue
        known = chosen.meta(summary) | {"name": name, "head_word": "head", "head_words": "heads"}
        known["note"] = grid_note(one.grid_k, grid, one.grid_q)
        if chosen.mean:
            missing.append(f"{name}: its heads one by one; the file has their mean")
        data = chosen.encode(summary)
        assert len(data) == chosen.num_bytes
        room -= len(data)
        written.append(known | {"blob": writer.write_blob(data)})
    return written, missing


def by_importance(names: list[str], layer: str) -> list[str]:
    """Sorts names of blocks: names that start with `layer`, the last block of each stage, then the
    others. In each group, deeper blocks come first."""
    last = {stage_of(name): name for name in names}
    deepest_first = names[::-1]
    return sorted(
        deepest_first,
        key=lambda name: (not layer or not name.startswith(layer), last[stage_of(name)] != name),
    )


def stage_of(block: str) -> str:
    """Returns the name before the first list index: "layer2" for "layer2.1.bn2.cbam"."""
    return re.split(r"\.(?=\d)", block)[0]
