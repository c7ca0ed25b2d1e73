import numpy as np
import pytest

from videoattn.data.lists.spans import Spans

STRINGS = ["a b/c.mp4", "", "x", "größe/日本.webm", "a b/c.mp4", "0123456701234567", "01234567"]


def test_strings_come_back() -> None:
    spans = Spans.of(STRINGS)
    assert list(spans) == STRINGS
    assert list(spans.take([3, 0]).compact()) == [STRINGS[3], STRINGS[0]]
    assert len(spans.take([3, 0]).compact().data) == len((STRINGS[3] + STRINGS[0]).encode())
    assert list(spans.take(spans.lengths == 1).followed_by(Spans.of(["y"]))) == ["x", "y"]
    assert list(Spans.of([])) == list(Spans.of([]).compact()) == []


@pytest.mark.parametrize("text", ["", "a", "a\n", "\n", "a\r\n\n  b\t\n c", "\ufeffa\nb"])
def test_lines(text: str) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    expected = [line.strip() for line in text.removeprefix("\ufeff").split("\n")]
    if text.endswith("\n"):
        expected.pop()
    assert list(Spans.lines(data).strip()) == expected


@pytest.mark.parametrize("separator", [" ", ",", "::", "é"])
def test_rsplit_is_pythons(separator: str) -> None:
    strings = ["a b,c::dée 1", "", " ", "::", ":::", "no", "a\tb", "x,", "é", "a::b::c", " a"]
    left, right, found = Spans.of(strings).rsplit(separator)
    for i, string in enumerate(strings):
        text = string.replace("\t", " ") if separator == " " else string
        before, middle, after = text.rpartition(separator)
        assert (left[i].replace("\t", " "), right[i]) == (before, after)
        assert found[i] == bool(middle)


def test_rsplit_across_the_pieces_that_are_searched() -> None:
    size = 1 << 18
    strings = ["x" * (size - 1) + "::" + "y" * size, "a::b"]
    left, right, found = Spans.of(strings).rsplit("::")
    assert found.all()
    assert (list(left), list(right)) == (["x" * (size - 1), "a"], ["y" * size, "b"])


def test_columns() -> None:
    columns, good = Spans.of(["a,b,c", "a,b", "1,,3", "", "1,2,3,4"]).split(",", 3)
    assert good.tolist() == [True, False, True, False, False]
    assert [[column[i] for column in columns] for i in (0, 2)] == [["a", "b", "c"], ["1", "", "3"]]


def test_stems_and_names() -> None:
    spans = Spans.of(["a.b/c.d.mp4", "a.b/c", "c.avi", "c", "a/.x"])
    assert list(spans.stems()) == ["a.b/c.d", "a.b/c", "c", "c", "a/"]
    assert list(spans.names()) == ["c.d.mp4", "c", "c.avi", "c", ".x"]
    assert spans.startswith("a.b/").tolist() == [True, True, False, False, False]


def test_integers() -> None:
    strings = ["0", "12", "-3", "", "-", "1a", "+1", "1.0", "9" * 18, "9" * 19, "٣"]
    values, valid = Spans.of(strings).integers()
    assert valid.tolist() == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert values[valid].tolist() == [0, 12, -3, 10**18 - 1]


def test_find_and_repeats() -> None:
    table = Spans.of(STRINGS)
    assert Spans.of(["x", "nowhere", "a b/c.mp4", ""]).find(table).tolist() == [2, -1, 0, 1]
    assert Spans.of(["x"]).find(Spans.of([])).tolist() == [-1]
    assert table.repeats() == [(4, 0)]
    assert table.take([0, 1, 2]).repeats() == []
    strings, which = table.unique()
    assert strings == sorted(set(STRINGS))
    assert [strings[i] for i in which] == STRINGS


def test_hashes_differ_where_strings_do() -> None:
    """Numbered names, whose differences lie in few bytes; and beginnings of each other."""
    names = [f"v_{a:06d}_{b:06d}.mp4" for a in range(300) for b in range(300)]
    names += ["z" * n for n in range(40)] + ["\0" * n for n in range(1, 40)]
    spans = Spans.of(names)
    assert len(np.unique(spans.hashes)) == len(names)
    alone = [int(Spans.of([name]).hashes[0]) for name in names[-100:]]
    assert spans.hashes[-100:].tolist() == alone, "a hash depends on its string alone"
