"""Reads every list format into `Samples`: paths, labels and class names.

Each family of formats has a module. It parses the lines of a list (`plain.Lines`), then finds the
videos that they name (`samples.find_videos`).
"""

from videoattn.data.lists.files import VIDEO_SUFFIXES as VIDEO_SUFFIXES
from videoattn.data.lists.files import ListError as ListError
from videoattn.data.lists.files import existing_root as existing_root
from videoattn.data.lists.folders import class_folders as class_folders
from videoattn.data.lists.folders import read_class_list as read_class_list
from videoattn.data.lists.folders import read_folders as read_folders
from videoattn.data.lists.folders import read_frames as read_frames
from videoattn.data.lists.folders import read_hmdb51 as read_hmdb51
from videoattn.data.lists.folders import read_ucf101 as read_ucf101
from videoattn.data.lists.plain import parse_list as parse_list
from videoattn.data.lists.plain import read_list as read_list
from videoattn.data.lists.published import kinetics_csv as kinetics_csv
from videoattn.data.lists.published import read_charades as read_charades
from videoattn.data.lists.published import read_jester as read_jester
from videoattn.data.lists.published import read_kinetics as read_kinetics
from videoattn.data.lists.published import read_kinetics_csv as read_kinetics_csv
from videoattn.data.lists.published import read_something as read_something
from videoattn.data.lists.samples import Label as Label
from videoattn.data.lists.samples import LabelSets as LabelSets
from videoattn.data.lists.samples import Missing as Missing
from videoattn.data.lists.samples import Samples as Samples
