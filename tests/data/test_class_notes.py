"""Notes about datasets that are probably a mistake: empty classes, ignored files, labels from 1."""

from pathlib import Path

import pytest

from tests.data.test_annotations import touch
from videoattn.data.classes import class_notes
from videoattn.data.lists import read_folders, read_frames, read_list


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.mp4", "b/1.mp4", "b/2.mp4"], []),
        (["a/1.mp4", "b/1.mp4", "b/.1.mp4", ".DS_Store", "notes.txt"], []),
        (
            ["a/1.mp4", "b/1.mp4", "b/2.MP4", "c/x.MTS", "c/y.MTS", "c/z.txt"],
            [
                "classes without a training video: 1 of 3, c; the others have 1",
                "files ignored because of their extensions: 2 .MTS, 1 .txt",
            ],
        ),
        (
            ["a/1.mp4", "a/1.mts", "b/1.mp4", "b/day/README", "b/2.mts"],
            ["files ignored because of their extensions: 2 .mts, 1 without one"],
        ),
        (
            ["a/img_1.jpg", "b/1.mp4"],
            [
                "classes without a training video: 1 of 2, a; the others have 1 to 1",
                "all training videos are of one class, b: there is nothing to learn",
                "files ignored because of their extensions: 1 .jpg",
            ],
        ),
        (
            ["a/1.mp4", "a/2.mp4"],
            ["all training videos are of one class, a: there is nothing to l"],
        ),
    ],
)
def test_notes_about_class_folders(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    notes = class_notes(read_folders(touch(tmp_path, *files)))
    assert [note[: len(text)] for note, text in zip(notes, expected, strict=True)] == expected


def test_many_empty_classes_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4", "b/1.mp4", *(f"c{i}/x.ogv" for i in range(1200)))
    notes = class_notes(read_folders(tmp_path))
    assert notes[0].startswith("classes without a training video: 1,200 of 1,202, c0, c1, ")
    assert notes[0].endswith(" and 1,195 more; the others have 1 to 1")
    assert notes[1].endswith(" extensions: 1,200 .ogv")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 0], []),
        (
            [1, 2, 2],
            [
                "classes without a training video: 1 of 3, 0; the others have 1 to 2",
                "the labels start at 1, not 0: class 0 has no video",
            ],
        ),
        ([0, 3, 1], ["classes without a training video: 1 of 4, 2; the others have 1 to 1"]),
        ([0, 0, 0], ["all training videos are of one class, 0: there is nothing to learn"]),
    ],
)
def test_notes_about_the_labels_of_lists(
    tmp_path: Path, labels: list[int], expected: list[str]
) -> None:
    touch(tmp_path, "0.mp4", "1.mp4", "2.mp4", *(f"f{k}/img_00001.jpg" for k in range(3)))
    (tmp_path / "videos").write_text("".join(f"{k}.mp4 {c}\n" for k, c in enumerate(labels)))
    assert class_notes(read_list(tmp_path / "videos", tmp_path), numbered=True) == expected
    (tmp_path / "frames").write_text("".join(f"f{k} 1 {c}\n" for k, c in enumerate(labels)))
    assert class_notes(read_frames(tmp_path / "frames", tmp_path), numbered=True) == expected
