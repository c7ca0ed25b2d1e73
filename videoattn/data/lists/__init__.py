"""Reads every list format into `Samples`: paths, labels and class names.

Each family of formats has a module. It parses the lines of a list (`lines`), then finds the videos
that they name (`files`).
"""

from videoattn.data.lists.charades import read_charades
from videoattn.data.lists.files import VIDEO_SUFFIXES, Missing, existing_root
from videoattn.data.lists.folders import class_folders, read_folders
from videoattn.data.lists.kinetics import kinetics_csv, read_kinetics, read_kinetics_csv
from videoattn.data.lists.lines import ListError, read_class_list
from videoattn.data.lists.official import read_hmdb51, read_ucf101
from videoattn.data.lists.plain import parse_list, read_frames, read_list
from videoattn.data.lists.samples import Label, LabelSets, Samples, class_notes, class_sizes
from videoattn.data.lists.twentybn import read_jester, read_something

__all__ = [
    "VIDEO_SUFFIXES",
    "Label",
    "LabelSets",
    "ListError",
    "Missing",
    "Samples",
    "class_folders",
    "class_notes",
    "class_sizes",
    "existing_root",
    "kinetics_csv",
    "parse_list",
    "read_charades",
    "read_class_list",
    "read_folders",
    "read_frames",
    "read_hmdb51",
    "read_jester",
    "read_kinetics",
    "read_kinetics_csv",
    "read_list",
    "read_something",
    "read_ucf101",
]
