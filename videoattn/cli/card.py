"""Writes README.md of a shared folder: a model card, with the front matter of Hugging Face's hub.

The card has the measurements in the run's folder (`RUN/test/report.json`, else the last validation
in `metrics.jsonl`), and those of a run in the same parent folder that differs only in training on
still frames.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from videoattn._version import __version__
from videoattn.cli.env import machine
from videoattn.cli.test import METRICS
from videoattn.engine.trackers import read_records
from videoattn.errors import first_few
from videoattn.recipe.folder import CONFIG
from videoattn.recipe.load import comparable, read_yaml, shareable, to_dict
from videoattn.recipe.run import Predictor
from videoattn.weights import PUBLIC

NUM_CLASSES_SHOWN = 20
PICTURE = "picture.png"


def card_text(predictor: Predictor, *, name: str, has_picture: bool) -> str:
    """Returns the text of README.md for a folder of this name, as Markdown."""
    results = _results(predictor.folder, predictor.checkpoint.name)
    names = [_plain(class_name) for class_name in predictor.class_names]
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(predictor, name, results), sort_keys=False)}---\n",
        f"# {_plain(name)}\n\n{_summary(predictor)}\n",
        f"![What the network looks at in a video]({PICTURE})\n" if has_picture else "",
        "## Use\n\n"
        f"    videoattn predict {name} VIDEO\n"
        f"    videoattn visualize {name} VIDEO\n\n"
        "or, in Python:\n\n"
        "    import videoattn\n\n"
        f"    predictor = videoattn.load({name!r})\n"
        '    predictor("some.mp4")[0]\n',
        f"## Input\n\n{_input(predictor)}\n",
        f"## Classes\n\n{len(names)}: {first_few(names, NUM_CLASSES_SHOWN)}.\n",
        f"## Accuracy\n\n{_accuracy(predictor, results)}\n",
        f"## License\n\n{_license_text(predictor)}\n",
        f"Written by videoattn {__version__} on {_plain(machine())}.\n",
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(
    predictor: Predictor, name: str, results: Mapping[str, Any] | None
) -> dict[str, Any]:
    config = predictor.config
    systems = [system.name for system in config.model.attention.systems]
    values: dict[str, Any] = {
        "library_name": "videoattn",
        "pipeline_tag": "video-classification",
        "tags": ["action-recognition", config.model.name, *systems],
    }
    if terms := license_of(predictor):
        values = {"license": terms.lower(), **values}
    if results is not None:
        dataset = {"type": "video", "name": f"{results['videos']} test videos"}
        kind = results["metric"]
        metric = {"type": kind, "value": results["video"], "name": f"{METRICS[kind]} of videos"}
        task = {"type": "video-classification"}
        measured = {"task": task, "dataset": dataset, "metrics": [metric]}
        values["model-index"] = [{"name": name, "results": [measured]}]
    return values


def _summary(predictor: Predictor) -> str:
    config, provenance = predictor.config, predictor.meta.get("provenance", {})
    attention = " and ".join(str(system.name) for system in config.model.attention.systems)
    size = sum(parameter.numel() for parameter in predictor.model.parameters())
    text = (
        f"{config.model.name}{f' with {attention}' if attention else ''}, {size:,} parameters, "
        f"names {len(predictor.class_names)} actions in video."
    )
    if origin := provenance.get("public_name"):
        text += (
            f" Converted from `{_plain(origin)}`, trained on {_plain(provenance.get('dataset'))}."
        )
    elif started := starting_weights(predictor):
        text += f" Training started from `{_plain(started)}`."
    return text


def _input(predictor: Predictor) -> str:
    clip, test = predictor.config.clip, predictor.config.test
    height, width = predictor.config.test_size
    stride = f", {clip.frame_stride} apart" if clip.sampling == "dense" else ", one per segment"
    return (
        f"{clip.num_frames} frames{stride}, of {height} x {width} pixels, normalized with mean "
        f"{list(clip.mean)} and standard deviation {list(clip.std)} of RGB in 0 - 1. A video has "
        f"{test.num_clips} x {test.num_crops} views (clips x crops), whose probabilities are "
        "averaged. `config.json` has all settings."
    )


def _accuracy(predictor: Predictor, results: Mapping[str, Any] | None) -> str:
    lines = []
    provenance = predictor.meta.get("provenance", {})
    if isinstance(top1 := provenance.get("published_top1"), int | float):
        lines.append(
            f"Published: {top1:g} % top-1 on {_plain(provenance.get('dataset'))}, "
            f"{_plain(provenance.get('published_views'))} ({_plain(provenance.get('source'))})."
        )
    if results is not None:
        still = _still_baseline(predictor)
        lines += [
            f"| | {METRICS[results['metric']]} of videos | {results['of_views']} of views "
            "| test videos |",
            "| --- | --- | --- | --- |",
            _row("this network", results),
            *([_row("the same, trained on still frames", still)] if still else []),
            "",
            f"A video's answer is the mean over {results['views']} views. Measured "
            f"{results['where']}.",
        ]
        if still is None:
            lines.append("A baseline on still frames was not measured.")
    return "\n".join(lines) or "Not measured."


def _row(name: str, results: Mapping[str, Any]) -> str:
    shares = " | ".join(f"{100 * results[key]:.2f} %" for key in ("video", "clip"))
    return f"| {name} | {shares} | {results['videos']} |"


def _results(folder: Path, checkpoint: str) -> dict[str, Any] | None:
    """Returns the measurements of a checkpoint in a run's folder, as fractions, or None."""
    report, log = folder / "test/report.json", folder / "metrics.jsonl"
    if report.is_file():
        found, where = json.loads(report.read_text()), "by `videoattn test`"
    else:
        validations = [one for one in read_records(log, kind=str) if one["kind"] == "validation"]
        found = validations[-1] if validations else None
        where = "in the last validation of the training"
    if not isinstance(found, dict) or found.get("checkpoint", checkpoint) != checkpoint:
        return None  # none, or of other weights in this folder
    metric = "mAP" if "video_mAP" in found else "accuracy"
    of_views = "hit1" if metric == "mAP" else metric
    numbers = {
        "video": found.get(f"video_{metric}"),
        "clip": found.get(f"clip_{of_views}"),
        "videos": found.get("videos_labelled", found.get("videos")),
        "views": found.get("views_per_video", found.get("views")),
    }
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers.values()):
        return None
    where += f" on {_plain(found['machine'])}" if found.get("machine") else ""
    return {**numbers, "metric": metric, "of_views": METRICS[of_views], "where": where}


def _still_baseline(predictor: Predictor) -> dict[str, Any] | None:
    """Returns the results of a sibling run that differs only in `clip.still_frame`."""
    own = _without_name(to_dict(predictor.config))
    if predictor.config.clip.still_frame:
        return None
    for path in sorted(predictor.folder.parent.glob(f"*/{CONFIG}")):
        try:
            other = _without_name(comparable(read_yaml(path)))
        except (ValueError, AttributeError):
            continue  # not a run
        if other == {**own, "clip": {**own["clip"], "still_frame": True}}:
            return _results(path.parent, predictor.checkpoint.name)
    return None


def _without_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in shareable(values).items() if key != "name"}


def starting_weights(predictor: Predictor) -> str:
    """Returns the public name, or the name of the file, that the training started from, or ""."""
    model = predictor.meta["config"].get("model")
    source = model.get("weights") if isinstance(model, Mapping) else None
    source = source or predictor.meta.get("provenance", {}).get("started_from")
    name = str(source or "").partition(":")[0]
    return name if name in PUBLIC else Path(name).name


def license_of(predictor: Predictor) -> str:
    """Returns the license of the weights, or of the public model that training started from."""
    started = starting_weights(predictor)
    if started in PUBLIC:
        return PUBLIC[started].license
    return str(predictor.meta.get("provenance", {}).get("licence") or "")


def _license_text(predictor: Predictor) -> str:
    terms, started = license_of(predictor), starting_weights(predictor)
    if terms:
        whose = "the starting" if started else "the converted"
        return f"{_plain(terms)}, the license of {whose} weights."
    if started:
        return "The license of the starting weights is not known: ask their authors."
    if (predictor.folder / CONFIG).is_file():
        return "The weights were trained from scratch: their owner chooses a license."
    return "The license of the weights is not known: ask who shared them."


def _plain(text: object) -> str:
    """Returns text on one line, with the characters that Markdown or HTML interprets escaped."""
    return "".join(f"&#{ord(c)};" if c in "<>&|[]`*\\\n\r" else c for c in str(text))
