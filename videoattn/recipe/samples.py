"""Reads the videos and labels of a recipe."""

from functools import partial
from pathlib import Path
from typing import Literal

from videoattn.data.lists import (
    Missing,
    Samples,
    class_folders,
    existing_root,
    kinetics_csv,
    parse_list,
    read_charades,
    read_class_list,
    read_folders,
    read_frames,
    read_hmdb51,
    read_jester,
    read_kinetics,
    read_kinetics_csv,
    read_list,
    read_something,
    read_ucf101,
)
from videoattn.data.lists.plain import Columns
from videoattn.data.shards import Shards, open_shards
from videoattn.recipe.config import DataConfig, section
from videoattn.recipe.packaged import find_file

Subset = Literal["train", "test"]

_RELEASED = {"something": read_something, "jester": read_jester, "charades": read_charades}


def make_samples(config: DataConfig, subset: Subset, missing: Missing | None = None) -> Samples:
    """Returns the videos and labels of the training or test split.

    Args:
        missing: How to treat videos that do not exist. By default, `on_error="skip"` drops them
            from training and counts them as failed in evaluation.

    Raises:
        ValueError: If a list is wrong, or videos are missing and `on_error` is "raise".
    """
    if missing is None:
        skipped: Missing = "drop" if subset == "train" else "keep"
        missing = skipped if config.on_error == "skip" else "raise"
    with section("data"):
        return _read_samples(config, subset, missing)


def _read_samples(config: DataConfig, subset: Subset, missing: Missing) -> Samples:
    split = config.train_split if subset == "train" else config.test_split
    if config.layout == "shards":
        return find_shards(config, subset).samples()
    root = existing_root(config.root)
    match config.layout:
        case "ucf101":
            return read_ucf101(root, config.official_split, subset, missing=missing)
        case "hmdb51":
            return read_hmdb51(root, config.official_split, subset, missing=missing)
        case "something" | "jester" | "charades":
            return _RELEASED[config.layout](root, split, missing=missing)
    names, columns = _class_names(config, subset), _columns(config)
    match config.layout:
        case "kinetics":
            return read_kinetics(root, split, class_names=names, missing=missing)
        case "frames":
            read = partial(
                read_frames,
                frame_template=config.frame_template,
                frame_start=config.frame_start,
                columns=columns,
            )
        case "list":
            read = partial(read_list, columns=columns)
        case _:
            return read_folders(root, split, class_names=names)
    separator = config.separator
    return read(root / split, root, class_names=names, separator=separator, missing=missing)


def _class_names(config: DataConfig, subset: Subset) -> tuple[str, ...] | None:
    """Returns the names of the class list; without a list, the test split uses training classes."""
    if config.class_list is not None:
        return read_class_list(find_file("class list", config.class_list))
    if subset == "train":
        return None
    root, split = Path(config.root), config.train_split
    match config.layout:
        case "shards":
            return open_shards(config.root, split).class_names
        case "kinetics":
            return read_kinetics_csv(kinetics_csv(root, split)).class_names
        case "list" | "frames":
            columns = _columns(config)
            return parse_list(root / split, columns=columns, separator=config.separator).class_names
    return class_folders(root, split)


def _columns(config: DataConfig) -> Columns:
    """Returns the columns of a list; lists of frames always have the number of images."""
    if config.layout == "list":
        return config.columns
    return "path frames labels" if config.columns == "path labels" else "path frames label"


def find_shards(config: DataConfig, subset: Subset) -> Shards:
    """Opens shards and checks that their classes are those of the class list, or of training."""
    split = config.train_split if subset == "train" else config.test_split
    shards = open_shards(config.root, split)
    names = _class_names(config, subset)
    if names is not None and names != shards.class_names:
        listed = config.class_list is not None
        source = f"data.class_list, {config.class_list}" if listed else "the training shards"
        raise ValueError(
            f"the {subset} shards have {len(shards.class_names)} classes, the first "
            f"{shards.class_names[0]!r}; need the {len(names)} of {source}, the first {names[0]!r}"
        )
    return shards
