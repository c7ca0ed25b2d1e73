"""Pages from hostile or odd input: a message or a correct picture, never a blank page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import axe_core_python.selenium
import pytest
import torch
from selenium import webdriver

from tests.explain.pages import GRID, archive, fields, frames, random_map
from videoattn.attention.maps import GateMap, PairwiseMap
from videoattn.explain.explorer.encode import Encoder
from videoattn.explain.explorer.errors import Answer, write_errors
from videoattn.explain.explorer.pack import Budget, by_importance, to_json, write_explorer

Open = Callable[..., Callable[..., Any]]
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>\u2028"


def is_drawn(run: Callable[..., Any], canvas: str = "$('canvas0')") -> bool:
    """Whether a canvas has more than one color."""
    colors = (
        f"(() => {{ const c = {canvas}, s = document.createElement('canvas');"
        " s.width = s.height = 8; const d = s.getContext('2d'); d.drawImage(c, 0, 0, 8, 8);"
        " const all = d.getImageData(0, 0, 8, 8).data;"
        " return new Set(all.filter((_, i) => i % 4 !== 3)).size })()"
    )
    return bool(run(colors) > 2)


def test_names_with_markup_are_text(tmp_path: Path, opened: Open) -> None:
    maps: dict[str, PairwiseMap | GateMap] = {
        HOSTILE: random_map(),
        f"hires_cam/{HOSTILE}": GateMap("cam", torch.rand(1, *GRID), identity_value=0.0),
        f"hires_cam/a/b{HOSTILE}": GateMap("cam", torch.rand(1, *GRID), identity_value=0.0),
        "bad": GateMap("spatial", torch.full((1, *GRID), float("nan"))),
    }
    classes = [(HOSTILE, 0.5), ("x", float("nan"))]
    queries = [(0, 0, 0, HOSTILE, HOSTILE)]
    one = archive(maps, video=HOSTILE, run=HOSTILE, classes=classes, truth=HOSTILE, queries=queries)
    write_explorer(tmp_path / "a.html", [one], Budget())
    run = opened(tmp_path / "a.html")
    assert run("window.pwned === undefined")
    assert run("$('title').textContent") == HOSTILE
    assert run("videoattn.state().map") == HOSTILE
    run("videoattn.set({ map: 'hires_cam', head: 1 })")
    assert run("$('head').selectedOptions[0].text") == f"a/b{HOSTILE}"
    assert "unknown" in run("$('classes').textContent")
    assert run("document.querySelectorAll('img, main script').length") == 0
    assert run("window.pwned === undefined")


def test_json_in_a_page_has_no_markup() -> None:
    text = to_json({"a": ["<!--", "</script>", "&", "\u2028\udc80", float("inf")]})
    assert not set("<>&\u2028") & set(text)
    assert "null" in text


def test_the_page_can_reach_no_network(
    tmp_path: Path, opened: Open, browser: webdriver.Chrome
) -> None:
    folder = tmp_path / "mit Leerzeichen \u00e4\u00f6\u00fc #1 %20"
    folder.mkdir()
    path = folder / "a.html"
    write_explorer(path, [archive({"x": random_map()})], Budget())
    path.chmod(0o444)
    folder.chmod(0o555)
    run = opened(path)
    assert is_drawn(run)
    tried = run("fetch('https://example.com').then(() => 'reached', () => 'refused')")
    assert tried == "refused"
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]
    folder.chmod(0o755)


@pytest.mark.parametrize(
    ("count", "size", "grid", "words"),
    [
        (1, (112, 128), (1, 7, 8), "frame 0 (100 %)"),
        (300, (60, 80), (150, 3, 4), ""),
        (8, (320, 90), GRID, ""),
        (8, (112, 128), (1, 1, 1), "row 1, column 1 of frames 0 to 28, has 1 times"),
        (5, (4, 6), (5, 4, 6), ""),
    ],
)
def test_odd_clips_and_grids(
    count: int, size: tuple[int, int], grid: Any, words: str, tmp_path: Path, opened: Open
) -> None:
    one = archive({"x": random_map(grid_q=grid, grid_k=grid)}, frames(count, *size))
    write_explorer(tmp_path / "a.html", [one], Budget())
    run = opened(tmp_path / "a.html")
    assert is_drawn(run)
    assert words in run("$('sentence').textContent")
    assert run("$('strip').children.length") == count
    last = "$('strip').lastElementChild"
    run(f"({last}.scrollIntoView(), videoattn.set({{ frame: {count - 1} }}))")
    script = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    run(script)
    assert is_drawn(run, f"{last}.querySelector('canvas')")
    assert run("$('problem').hidden")
    if grid == (1, 1, 1):
        assert "all of the frame and 8 frames; too coarse" in run("$('grid').textContent")


def test_maps_that_are_not_finite_or_too_large_are_named(tmp_path: Path, opened: Open) -> None:
    nan = random_map()
    assert nan.factors is not None
    nan.factors.q[0, 0, 3, 2] = float("nan")
    partial = random_map(1)
    partial = PairwiseMap(
        "pairwise", partial.rows, partial.queries, (64, 112, 112), (64, 56, 56), normalized=True
    )
    large = random_map(2, grid_q=(8, 28, 28), grid_k=(8, 28, 28), width=64)
    maps = {"a": nan, "b": partial, "c": large, "d": random_map(3)}
    missing = write_explorer(tmp_path / "a.html", [archive(maps)], Budget(megabytes=0.5))
    expected = [
        "c: needs 1.7 MB of a budget that is used up",
        "b: all rows of a 802,816 x 200,704 map are too many",
        "a: some weights are not finite",
    ]
    assert missing == [f"push.mp4: {text}" for text in expected]
    run = opened(tmp_path / "a.html")
    assert run("videoattn.maps().map((map) => map.name)") == ["d"]
    assert (
        run("$('missing').innerText.split('\\n').slice(1)") == expected
        or run("[...$('missing').querySelectorAll('li')].map((e) => e.textContent)") == expected
    )


def test_a_network_without_maps(tmp_path: Path, opened: Open) -> None:
    write_explorer(tmp_path / "a.html", [archive({}, queries=[])], Budget())
    run = opened(tmp_path / "a.html")
    assert is_drawn(run)
    assert run("$('sentence').textContent") == "This file has no map of this network."
    run("KEYS.ArrowUp(), KEYS.r(), KEYS['.'](), KEYS.c(), KEYS[']']()")
    assert run("$('canvas0').width > 100")


def test_the_budget_and_the_size_of_the_file(tmp_path: Path) -> None:
    """The maps that come first get the room; sizes are known before anything is written."""
    names = ["layer1.0_a", "layer1.1_a", "layer2.0_a", "layer2.1_a"]
    assert by_importance(names, "") == [names[3], names[1], names[2], names[0]]
    assert by_importance(names, "layer1") == [names[1], names[0], names[3], names[2]]
    maps = {
        name: random_map(i, width=64, heads=4, grid_q=(4, 14, 14)) for i, name in enumerate(names)
    }
    path = tmp_path / "a.html"
    missing = write_explorer(path, [archive(maps)], Budget(megabytes=1.2, layer="layer1.1"))
    assert [text.split(":")[1].strip() for text in missing] == [names[2], names[0]]
    page = tmp_path / "page.html"
    write_explorer(page, [archive({})], Budget())  # the frames, and the page itself
    estimate = sum(Encoder(maps[name]).num_bytes for name in (names[1], names[3]))
    assert estimate < 1.2e6
    assert path.stat().st_size - page.stat().st_size == pytest.approx(estimate * 4 / 3, rel=0.02)
    with pytest.raises(ValueError, match="budget: got 500 MB; browsers open at most 384"):
        write_explorer(path, [], Budget(megabytes=500))
    with pytest.raises(ValueError, match="archives: got none"):
        write_explorer(path, [], Budget())


def test_a_damaged_chunk_is_named_and_the_others_work(tmp_path: Path, opened: Open) -> None:
    path = tmp_path / "a.html"
    write_explorer(path, [archive({"x": random_map(1), "y": random_map(2)})], Budget())
    text = path.read_text()
    # Maps are packed from the last to the first, after the frames.
    start = text.index('data-chunk="1">') + 400
    for damage in ("A" if text[start] != "A" else "B", "*"):
        path.write_text(text[:start] + damage + text[start + 1 :])
        run = opened(path)
        message = "The map y cannot be read: this file is damaged; write it again, or copy it again"
        assert run("$('problem').textContent") == message
        assert is_drawn(run)
        run("videoattn.set({ map: 'x' })")
        assert run("$('problem').hidden")
        assert "of x looks mostly at" in run("$('sentence').textContent")
    start = text.index('data-chunk="0">') + 400
    path.write_text(text[:start] + "*" + text[start + 1 :])
    run = opened(path)
    for _ in range(2):  # the message stays
        assert run("$('problem').textContent").startswith("The frames cannot be read")
        run("videoattn.set({ frame: 1 })")


def test_a_damaged_index_is_named(tmp_path: Path, chromium: webdriver.Chrome) -> None:
    path = tmp_path / "a.html"
    write_explorer(path, [archive({"x": random_map(1)})], Budget())
    text = path.read_text()
    path.write_text(text.replace('"scenes":', '"scenes"', 1))
    chromium.get(path.as_uri())
    shown = chromium.execute_script("return document.getElementById('problem').textContent")
    assert shown.startswith("This file is damaged; write it again")
    chromium.get_log("browser")


def answers(class_names: list[str]) -> list[Answer]:
    count = len(class_names)
    found = [
        Answer(
            f"v{i}.mp4", i % count, i % count if i % 3 else (i // 3) % count, 0.1, 0.9 - i / 1000,
            frames(4, 24, 32) if i < 5 else None, "explorers/1.html" * (i == 0), "videoattn x",
        )
        for i in range(120)
    ]  # fmt: skip
    return sorted(found, key=lambda answer: answer.wrongness, reverse=True)


@pytest.mark.parametrize("class_names", [["a", "b", HOSTILE, "d"], [f"c{i}" for i in range(5000)]])
def test_the_page_of_errors(class_names: list[str], tmp_path: Path, opened: Open) -> None:
    found = answers(class_names)
    path = tmp_path / "errors.html"
    write_errors(path, found, run="mine", about="80 %", class_names=class_names)
    run = opened(path)
    wrong = [a for a in found if a.label != a.guess]
    assert run("videoattn.videos().length") == len(wrong)
    assert run("videoattn.videos().map((video) => video.name)") == [a.name for a in wrong]
    assert run("document.querySelectorAll('#videos li').length") == min(len(wrong), 40)
    assert run("window.pwned === undefined")
    cell = "document.querySelector('#matrix button:not(.right)')"
    title = run(f"{cell}.title")
    run(f"{cell}.click()")
    state = run("videoattn.state()")
    pair = f"{class_names[state['label']]} answered as {class_names[state['guess']]}"
    assert title == pair
    expected = [a for a in found if (a.label, a.guess) == (state["label"], state["guess"])]
    assert run("videoattn.videos().length") == len(expected) > 0
    run("$('clear').click()")
    run("($('all').click(), $('more').click())")
    assert run("videoattn.videos().length") == 120
    assert run("document.querySelectorAll('#videos li').length") == 80
    assert run("document.querySelectorAll('#videos img').length") == 5
    assert run("document.querySelector('#videos a')?.getAttribute('href')") in (
        "explorers/1.html", None,
    )  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("what", ["query", "compare", "field", "channel", "errors"])
def test_accessibility(
    what: str, theme: str, tmp_path: Path, opened: Open, browser: webdriver.Chrome
) -> None:
    """No violation of WCAG 2 A and AA by axe-core, in either theme."""
    media = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    path = tmp_path / "a.html"
    if what == "errors":
        write_errors(
            path, answers(["a", "b", "c"]), run="mine", about="x", class_names=["a", "b", "c"]
        )
    else:
        write_explorer(path, [archive({"x": random_map(heads=2)} | fields())], Budget())
    run = opened(path)
    states = {
        "compare": "{ compare: { scene: 0, map: 'x', head: 0 }, curve: 'root' }",
        "field": "{ map: 'hires_cam' }",
        "channel": "{ map: 'layer3.gate' }",
    }
    run(f"videoattn.set({states.get(what, '{}')})")
    run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert run("isDark()") == (theme == "dark")
    found = axe_core_python.selenium.Axe().run(browser)
    wrong = [
        (violation["id"], [node["html"][:100] for node in violation["nodes"]][:3])
        for violation in found["violations"]
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert wrong == []


def test_nothing_moves_by_itself(tmp_path: Path, opened: Open) -> None:
    write_explorer(tmp_path / "a.html", [archive({"x": random_map()})], Budget())
    run = opened(tmp_path / "a.html")
    assert run("document.getAnimations().length") == 0
    before = run("videoattn.state()")
    run("new Promise((done) => setTimeout(done, 400))")
    assert run("videoattn.state()") == before
