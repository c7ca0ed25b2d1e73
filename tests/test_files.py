"""Output files: complete or absent, and never outside their folder."""

import errno
import os
from pathlib import Path

import pytest

from tests.cli.test_commands import refused
from videoattn.files import output_folder, safe_file_name, write_text, write_whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("moves_left", "moves_left"),
        ("2/../../../escaped", "2_.._.._.._escaped"),
        ("..", "__"),
        (".", "_"),
        ("", "_"),
        ("a b\n\x1b[2J\0", "a_b___2J_"),
        ("打球", "打球"),
        ("x" * 300, "x" * 100),
    ],
)
def test_any_text_becomes_one_path_component(text: str, expected: str) -> None:
    assert safe_file_name(text) == expected
    assert Path("folder", expected).parent == Path("folder")


def test_a_file_is_replaced_whole_and_no_temporary_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.txt"
    write_text(path, "one")
    write_text(path, "two \udce9")
    assert path.read_bytes() == b"two \xe9"
    assert os.listdir(path.parent) == ["report.txt"]


def test_a_link_is_replaced_and_its_target_is_untouched(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    path = tmp_path / "per_class.csv"
    path.symlink_to(victim)
    write_text(path, "theirs")
    assert (victim.read_text(), path.read_text()) == ("mine", "theirs")
    assert not path.is_symlink()


def test_after_an_error_the_previous_file_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"good")

    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"no space left to write .*a\.bin; the previous one is unch"):
        write_whole(path, fail)
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_is_reported_although_the_writer_hides_it(tmp_path: Path) -> None:
    def hide(file: object) -> None:
        try:
            raise OSError(errno.EIO, "broken")
        except OSError as error:
            raise RuntimeError("unexpected pos") from error

    with pytest.raises(RuntimeError, match="unexpected pos"):
        write_whole(tmp_path / "a.bin", hide)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/a\.txt: .*; nothing was written$"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_output_folders_that_are_links_or_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "test").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"test is a link; remove it, or choose another output"):
        output_folder(tmp_path / "test")
    with pytest.raises(ValueError, match=r"file is a file; remove it, or choose another output"):
        output_folder(tmp_path / "file")
    assert output_folder(tmp_path / "new" / "deep").is_dir()


@pytest.mark.parametrize("text", ["类" * 100, "é" * 300, "a" * 99 + "类", "x" * 300])
def test_names_are_cut_by_bytes(text: str, tmp_path: Path) -> None:
    name = safe_file_name(text)
    assert text.startswith(name)
    assert 98 <= len(name.encode()) <= 100
    write_text(tmp_path / f"{name}_grad_cam_{name}.mp4", "x")  # as `visualize` names files


@pytest.mark.parametrize("name", ["类" * 84, "é" * 125, "a" * 250])
def test_a_file_with_a_long_name_is_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "words", [("explore", "runs/demo", "a.mp4"), ("browse", "demo", "data.root=clips")]
)
@pytest.mark.parametrize("name", ["b.mp4", "notes", "page.html.mp4"])
def test_an_output_with_another_ending_is_refused(
    words: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video that was typed as the output is not replaced."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("mine")
    ending = ".html" if words[0] == "explore" else ".png"
    message = f"output: got {name}; need a file name that ends in {ending}"
    assert message in refused(*words, "--out", name)
    assert Path(name).read_text() == "mine"
