"""The explorer in a browser: clicks, keys, words, comparisons, links, pictures."""

import base64
import csv
import io
import random
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.explain.pages import CLIP, GRID, archive, fields, frames, random_map
from videoattn.attention.maps import PairwiseMap
from videoattn.attention.record import cell_number
from videoattn.explain.choose import summarize
from videoattn.explain.explorer.pack import Budget, write_explorer
from videoattn.explain.pairwise import query_position, strongest_keys, weights_of
from videoattn.explain.render import (
    colors_of,
    frame_shares,
    make_scale,
    number_text,
)
from videoattn.explain.words import describe_row, grid_note

NUMBERS = [str(4 * frame) for frame in range(CLIP[0])]
Run = Callable[..., Any]
Open = Callable[..., Run]

MAPS: dict[str, PairwiseMap] = {
    "layer2.1_non_local": random_map(3, grid_q=(4, 14, 16), exact=True),
    "layer3.1_non_local": random_map(4, heads=2, exact=True),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one clip, and one run on another clip."""
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    scenes = [
        archive(MAPS | fields()),
        archive({"layer3.1_non_local": random_map(5)}, run="other"),
        archive({"layer3.1_non_local": random_map(6)}, frames(12), run="longer"),
    ]
    assert write_explorer(path, scenes, Budget(num_clips=3)) == []
    return path


@pytest.fixture
def run(page: Path, opened: Open) -> Run:
    return opened(page)


def exact_row(name: str, query: int) -> PairwiseMap:
    return MAPS[name].select(torch.tensor([query]))


def test_the_first_view(run: Run, page: Path) -> None:
    """The last pairwise map, from the first suggested query, with its reason and the grid."""
    state = run("videoattn.state()")
    assert state["map"] == "layer3.1_non_local"
    assert state["queries"] == [cell_number((3, 20, 30), CLIP, GRID)]
    assert state["frame"] == 3
    assert run("$('reason').textContent") == (
        "This query was chosen because it adds most to the score."
    )
    assert run("$('grid').textContent") == grid_note(GRID, CLIP)
    assert run("$('about').textContent") == "mine (i3d_r18) answers PushUps, 75 %, which is right"


@pytest.fixture
def emulated(browser: webdriver.Chrome) -> Iterator[Callable[..., None]]:
    """A function that gives the window another size and density."""

    def emulate(**metrics: object) -> None:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics | {"mobile": False})

    yield emulate
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("density", [1, 2])
@pytest.mark.parametrize("zoom", [1, 2])
@pytest.mark.parametrize("where", ["#canvas0", "#strip li:nth-child(7) canvas"])
def test_a_click_chooses_the_cell_that_holds_the_pixel(
    where: str,
    zoom: int,
    density: int,
    run: Run,
    browser: webdriver.Chrome,
    emulated: Callable[..., None],
) -> None:
    # A browser that zooms makes its pixels larger, and its window smaller by as much.
    emulated(width=1440 // zoom, height=1000 // zoom, deviceScaleFactor=density * zoom)
    run("videoattn.set({ frame: 5 })")
    canvas = browser.find_element(By.CSS_SELECTOR, where)
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", canvas)
    frame = 5 if where == "#canvas0" else 6
    width, height = canvas.rect["width"], canvas.rect["height"]
    for row, column in ((0, 0), (5, 2), (6, 7)):
        # A third of a cell from its edges: a mouse is at whole pixels.
        y, x = (row + 0.35) / GRID[1], (column + 0.65) / GRID[2]
        offset = (int((x - 0.5) * width), int((y - 0.5) * height))
        ActionChains(browser, duration=0).move_to_element_with_offset(
            canvas, *offset
        ).click().perform()
        expected = cell_number((frame, int(1000 * y), int(1000 * x)), (CLIP[0], 1000, 1000), GRID)
        assert run("videoattn.state().queries") == [expected]
        assert run("videoattn.state().frame") == frame


def test_shift_adds_a_second_query_and_dragging_moves_it(
    run: Run, browser: webdriver.Chrome
) -> None:
    canvas = browser.find_element(By.ID, "canvas0")
    first = run("videoattn.state().queries")
    chain = ActionChains(browser, duration=0).move_to_element(canvas).key_down(Keys.SHIFT).click()
    chain.key_up(Keys.SHIFT).perform()
    second = run("videoattn.state().queries")
    assert len(second) == 2
    assert second[:1] == first
    chain = ActionChains(browser, duration=0).move_to_element_with_offset(canvas, -150, -100)
    chain.click_and_hold().move_by_offset(60, 60).move_by_offset(240, 140).release().perform()
    width, height = canvas.rect["width"], canvas.rect["height"]
    pixel = (3, int(1000 * (100 / height + 0.5)), int(1000 * (150 / width + 0.5)))
    assert run("videoattn.state().queries") == [cell_number(pixel, (CLIP[0], 1000, 1000), GRID)]


def test_the_mouse_previews_without_pinning(run: Run, browser: webdriver.Chrome) -> None:
    canvas, before = browser.find_element(By.ID, "canvas0"), run("$('sentence').textContent")
    state = run("videoattn.state()")
    ActionChains(browser, duration=0).move_to_element_with_offset(canvas, 99, 99).perform()
    script = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    run(script)
    assert run("$('sentence').textContent") != before
    assert run("videoattn.state()") == state
    ActionChains(browser, duration=0).move_to_element(browser.find_element(By.ID, "help")).perform()
    run(script)
    assert run("$('sentence').textContent") == before


@pytest.mark.parametrize(("name", "query"), [(name, q) for name in MAPS for q in (5, 100, 223)])
def test_words_shares_and_table_are_those_of_the_sheets(run: Run, name: str, query: int) -> None:
    run("videoattn.set({ map: arguments[0], queries: [arguments[1]], head: 'mean' })", name, query)
    found = exact_row(name, query)
    weights = weights_of(found, 0, 0)
    frame = query_position(found, 0, CLIP).frame
    expected = describe_row(
        found, 0, name=name, frame=frame, numbers=NUMBERS, strongest=summarize(MAPS[name]).strongest
    )
    assert run("$('sentence').textContent") == expected
    shares = [f"{100 * share:.0f} %" for share in frame_shares(weights, CLIP[0])]
    assert run("[...document.querySelectorAll('#strip small')].map((e) => e.textContent)") == shares
    rows = run(
        "[...$('keys').tBodies[0].rows].map((row) => [...row.cells].map((e) => e.textContent))"
    )
    keys = strongest_keys(weights, 10, CLIP)
    assert len(rows) == len(keys)
    for rank, (row, (position, weight)) in enumerate(zip(rows, keys, strict=True)):
        cell = (int(position.y * GRID[1] / CLIP[1]) + 1, int(position.x * GRID[2] / CLIP[2]) + 1)
        place = f"{rank + 1}: row {cell[0]}, column {cell[1]}"
        assert row[:2] == [NUMBERS[position.frame], place]
        shown = float(row[2].rstrip("\u00d7").replace("\u2212", "-"))
        assert shown == pytest.approx(weight * prod(GRID), rel=6e-3)


@pytest.mark.parametrize("smooth", [False, True])
def test_colors_on_the_canvas_are_those_of_the_sheets(
    smooth: bool, tmp_path: Path, opened: Open
) -> None:
    """At the centers of cells, over gray frames."""
    gray = torch.full((8, 3, 112, 128), 128, dtype=torch.uint8)
    found = random_map(8)
    write_explorer(tmp_path / "a.html", [archive({"x": found}, gray)], Budget())
    run = opened(tmp_path / "a.html")
    run("videoattn.set({ frame: 5, queries: [3], rings: false, smooth: arguments[0] })", smooth)
    pixels = run(
        "(() => { const { width, height } = $('canvas0');"
        " const all = $('canvas0').getContext('2d').getImageData(0, 0, width, height).data;"
        " return Array.from({ length: 56 }, (_, i) => {"
        " const x = Math.floor((i % 8 + 0.5) * width / 8);"
        " const at = 4 * (Math.floor((Math.floor(i / 8) + 0.5) * height / 7) * width + x);"
        " return [...all.slice(at, at + 3)] }) })()"
    )
    weights = found.select(torch.tensor([3])).weights[0, 0]
    scale = make_scale(weights, normalized=True)
    color, alpha = colors_of(weights[2].flatten() / scale.unit, scale)
    expected = 128 * (1 - alpha[:, None]) + 255 * color * alpha[:, None]
    assert (torch.tensor(pixels) - expected).abs().max() <= (5 if smooth else 3)
    heat = torch.tensor(run("[...videoattn.heat(5)]"))
    assert torch.allclose(heat, weights[2].flatten(), atol=1e-4)


def test_the_reverse_view_is_a_column_of_the_map(run: Run) -> None:
    name, query = "layer2.1_non_local", 333
    run(
        "videoattn.set({ map: arguments[0], queries: [arguments[1]], mode: 'reverse' })",
        name,
        query,
    )
    cell = query_position(exact_row(name, query), 0, CLIP)
    key = cell_number((cell.frame, int(cell.y), int(cell.x)), CLIP, GRID)
    column = MAPS[name].select(torch.arange(4 * 14 * 16)).weights[0].flatten(1)[:, key]
    for frame in range(8):
        got = torch.tensor(run("[...videoattn.heat(arguments[0])]", frame))
        assert torch.allclose(got, column.view(4, -1)[frame // 2], atol=1e-4)
    mean = number_text(float(column.mean()) * prod(GRID))
    words = f"receives {mean} times the uniform weight on average, mostly from frames "
    assert words in run("$('sentence').textContent")


def test_an_address_restores_the_state(run: Run, page: Path, opened: Open) -> None:
    state = run(
        "videoattn.set({ map: 'layer2.1_non_local', frame: 6, queries: [7, 40], mode: 'reverse',"
        " scale: 'fixed', curve: 'root', smooth: false, opacity: 60, how: 'side', rings: false,"
        " compare: { scene: 1, map: 'layer3.1_non_local', head: 'mean' } })"
    )
    assert state["compare"] == {"scene": 1, "map": "layer3.1_non_local", "head": "mean"}
    fragment = run("new URL(addressOf()).hash")
    again = opened(page, fragment)
    assert again("videoattn.state()") == state
    assert again("new URL(addressOf()).hash") == fragment


def test_addresses_that_do_not_fit_are_repaired_with_a_message(page: Path, opened: Open) -> None:
    run = opened(page, "#map=layer9&scene=77&queries=[5000]&mode=upside&head=9&frame=-4&opacity=x")
    problem = run("$('problem').textContent")
    for part in (
        "This file has no clip number 77.",
        "This clip has no map layer9; layer3.1_non_local is shown.",
        "layer3.1_non_local has no head 9.",
        "mode: got upside; it may be query or reverse.",
        "The queries of layer3.1_non_local are 0 to 223.",
    ):
        assert part in problem
    state = run("videoattn.state()")
    assert (state["map"], state["scene"], state["frame"]) == ("layer3.1_non_local", 0, 0)
    assert not run("videoattn.set({}) && $('problem').hidden === false")


def press(browser: webdriver.Chrome, *keys: str) -> None:
    ActionChains(browser, duration=0).send_keys(*keys).perform()


def test_keys(run: Run, browser: webdriver.Chrome) -> None:
    _, height, width = GRID
    query = run("videoattn.set({ queries: [2 * 56 + 3 * 8 + 4] }).queries[0]")
    run("$('canvas0').focus()")
    steps = {
        Keys.ARROW_RIGHT: 1, Keys.ARROW_DOWN: width, Keys.ARROW_LEFT: -1, Keys.ARROW_UP: -width,
        Keys.PAGE_DOWN: height * width, Keys.PAGE_UP: -height * width,
    }  # fmt: skip
    for key, step in steps.items():
        press(browser, key)
        query += step
        assert run("videoattn.state().queries") == [query]
    expected = [
        (Keys.END, "frame", 7), (Keys.HOME, "frame", 0), ("r", "mode", "reverse"),
        ("r", "mode", "query"), (".", "head", "max"), (".", "head", 0), (",", "head", "max"),
        ("m", "head", "mean"), ("]", "map", "hires_cam"), ("[", "map", "layer3.1_non_local"),
    ]  # fmt: skip
    for key, name, value in expected:
        press(browser, key)
        assert run("videoattn.state()[arguments[0]]", name) == value, key
    press(browser, "c")
    assert run("videoattn.state().compare") is not None
    press(browser, "?")
    assert run("$('manual').open")
    press(browser, Keys.ESCAPE)
    assert not run("$('manual').open")
    press(browser, " ")
    assert run("$('play').textContent") == "Pause"
    press(browser, " ")
    assert run("$('play').textContent") == "Play"
    assert run("document.activeElement.id") == "canvas0"


def test_a_query_with_the_keyboard_alone(run: Run, browser: webdriver.Chrome) -> None:
    """Tab reaches the frames; Enter chooses one, arrows move the query, and the focus is seen."""
    run("document.body.focus()")
    for _ in range(40):
        press(browser, Keys.TAB)
        if run("$('strip').contains(document.activeElement)"):
            break
    assert run("document.activeElement.matches(':focus-visible')")
    assert run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = run("videoattn.state()")
    press(browser, Keys.PAGE_DOWN)
    press(browser, Keys.ARROW_UP, Keys.ARROW_LEFT)
    after = run("videoattn.state()")
    assert after["queries"] == [before["queries"][0] + 56 - 8 - 1]
    assert run("document.activeElement === $('strip').children[arguments[0]].firstElementChild",
               after["frame"])  # fmt: skip
    assert run("new Promise((done) => setTimeout(() => done($('live').textContent), 600))") == run(
        "$('sentence').textContent"
    )


def test_two_runs_side_by_side_are_the_single_views(run: Run) -> None:
    other = {"scene": 1, "map": "layer3.1_non_local", "head": "mean"}

    def pixels(canvas: str) -> list[int]:
        return run(
            "(() => { const c = $(arguments[0]), s = document.createElement('canvas');"
            " s.width = s.height = 32; const d = s.getContext('2d');"
            " d.drawImage(c, 0, 0, 32, 32); return [...d.getImageData(0, 0, 32, 32).data] })()",
            canvas,
        )

    run("videoattn.set({ compare: arguments[0], queries: [60], frame: 1, rings: false })", other)
    left, right = pixels("canvas0"), pixels("canvas1")
    heat = run("[...videoattn.heat(1)]")
    run("videoattn.set({ compare: null })")
    alone = pixels("canvas0")
    run("videoattn.set({ scene: 1, queries: [60], frame: 1 })")
    assert run("[...videoattn.heat(1)]") != heat
    for got, expected in ((left, alone), (right, pixels("canvas0"))):
        assert np.abs(np.subtract(got, expected)).max() <= 24  # of other sizes
        assert np.abs(np.subtract(got, expected)).mean() <= 1.5


def test_a_difference_of_runs_heads_or_classes(run: Run) -> None:
    other = {"scene": 1, "map": "layer3.1_non_local", "head": "mean"}
    run("videoattn.set({ compare: arguments[0], how: 'difference', queries: [60] })", other)
    values = torch.tensor(run("[...views[0].layers[0].values]"))
    rows = [m.select(torch.tensor([60])).weights.flatten() for m in (MAPS["layer3.1_non_local"],
                                                                      random_map(5))]  # fmt: skip
    assert torch.allclose(values, (rows[0] - rows[1]) * prod(GRID), atol=2e-2)
    assert "Red: more in layer3.1_non_local of mine" in run("$('sentence').textContent")
    run(
        "videoattn.set({ map: 'hires_cam', head: 0,"
        " compare: { scene: 0, map: 'hires_cam', head: 1 } })"
    )
    assert run("views[0].difference")
    assert run("$('sentence').textContent").startswith("Red: more in hires_cam (PushUps) of mine.")


def test_comparisons_that_make_no_sense_are_refused(run: Run) -> None:
    def refused(changes: dict[str, object]) -> str:
        state = run("videoattn.set(arguments[0])", changes)
        assert state["compare"] is None or state["how"] == "side"
        return run("$('problem').textContent")

    longer = {"scene": 2, "map": "layer3.1_non_local", "head": "mean"}
    assert refused({"compare": longer}) == (
        "push.mp4, longer has other frames than push.mp4, mine, so they cannot be compared."
    )
    unknown = {"scene": 0, "map": "x", "head": "mean"}
    assert refused({"compare": unknown}) == "This file has no map x to compare with."
    coarse = {"scene": 0, "map": "hires_cam", "head": 0}
    run("videoattn.set({ map: 'layer2.1_non_local', mode: 'reverse' })")
    assert "Maps of different grids have no difference" in refused(
        {"compare": coarse, "how": "difference"}
    )
    disabled = run("[...$('compare').options].filter((o) => o.disabled).map((o) => o.text)")
    assert disabled == ["layer3.1_non_local of push.mp4, longer (other frames)"]


def test_the_picture_shows_the_screen(run: Run) -> None:
    data = run("videoattn.picture()").partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.width == 1600
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    ramp = np.array(run("[...$('ramp').getContext('2d').getImageData(0, 5, 256, 1).data]"))
    for color in ramp.reshape(-1, 4)[[64, 128, 240], :3]:
        assert np.abs(pixels[130] - color).max(axis=1).min() <= 6


def test_weights_as_a_table(run: Run) -> None:
    run("videoattn.set({ queries: [9], map: 'layer3.1_non_local' })")
    rows = list(csv.reader(io.StringIO(run("videoattn.table()"))))
    assert rows[0] == ["frame", "row", "column", "weight", "times_uniform"]
    weights = exact_row("layer3.1_non_local", 9).weights.flatten()
    assert len(rows) == 1 + prod(GRID)
    assert rows[1 + 56 + 8 + 2][:3] == ["8", "2", "3"]
    got = torch.tensor([float(row[3]) for row in rows[1:]])
    assert torch.allclose(got, weights, atol=1e-4)


def test_copying_the_link(run: Run, browser: webdriver.Chrome) -> None:
    """After a click the browser copies; without one it refuses, and the text is selected."""
    run("$('link').click()")
    script = "new Promise((done) => setTimeout(done, 200))"
    run(script)
    if run("$('manual').open"):
        assert run("getSelection().toString()") == run("addressOf()")
        press(browser, Keys.ESCAPE)
    browser.find_element(By.ID, "link").click()
    run(script)
    assert run("$('link').textContent === 'Copied' || $('manual').open")


def test_a_thousand_random_acts_leave_no_error(run: Run, browser: webdriver.Chrome) -> None:
    """Clicks and keys come from the browser, so they reach whatever lies at that point."""
    names = run("videoattn.maps().map((map) => map.name)")
    before = run("performance.memory.usedJSHeapSize")
    generator, seen = random.Random(0), set()
    for _ in range(400):
        press_key(browser, generator.choice(ACT_KEYS))
        area = f"$('{generator.choice(['canvas0', 'strip'])}').getBoundingClientRect()"
        left, top, width, height = run(
            f"(({{x, y, width, height}}) => [x, y, width, height])({area})"
        )
        x, y = left + generator.random() * width, top + generator.random() * height
        click_at(browser, x, y)
        seen.add(run("addressOf()"))
    assert len(seen) > 200, "the clicks and keys have no effect"
    acts = []
    for _ in range(200):
        kind = generator.randrange(5)
        acts.append(
            [
                {"map": generator.choice(names)},
                {"queries": [generator.randrange(224) for _ in range(generator.randrange(1, 3))]},
                {"head": generator.choice(["mean", "max", 0, 1]), "frame": generator.randrange(8)},
                {"mode": generator.choice(["query", "reverse"]), "scene": generator.randrange(3)},
                {"how": generator.choice(["side", "difference"]),
                 "compare": generator.choice([None, {"scene": 0, "map": names[1], "head": 0}])},
            ][kind]
        )  # fmt: skip
    assert run("arguments[0].map((act) => videoattn.set(act)).length", acts) == 200
    assert "This page has failed" not in run("$('problem').textContent")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert run("performance.memory.usedJSHeapSize") - before < (256 + 100) * 2**20


ACT_KEYS = [
    "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End",
    " ", "[", "]", ",", ".", "m", "r", "c", "Escape", "Tab",
]  # fmt: skip


def press_key(browser: webdriver.Chrome, key: str) -> None:
    text = {"text": key} if len(key) == 1 else {}
    for kind in ("keyDown", "keyUp"):
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key, **text})


def click_at(browser: webdriver.Chrome, x: float, y: float) -> None:
    where = {"x": x, "y": y, "button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **where})
