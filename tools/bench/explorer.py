"""Measures the explorer: the time to repaint after a click and to open a page, and file sizes.

Needs Chromium and its driver. The times use random maps. The sizes are measured for networks
with random weights and a random clip, with a budget for all maps.
"""

import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from common import print_table
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from videoattn.attention.archive import MapArchive
from videoattn.attention.maps import Factors, PairwiseMap
from videoattn.attention.record import Maps, record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.explain.explorer.pack import Budget, write_explorer
from videoattn.models import info
from videoattn.models.table import make_network
from videoattn.types import Grid

CLICK_GRID, CLICK_HEADS, CLICK_WIDTH, CLICKS = (8, 14, 14), 12, 64, 20
OPEN_MEGABYTES = 32
NETWORKS: dict[str, tuple[str, str, Grid]] = {
    "I3D-R50, non-local": ("i3d_r50", "non_local", (8, 224, 224)),
    "I3D-R50, 32 frames, non-local": ("i3d_r50_stem4", "non_local", (32, 224, 224)),
    "TSN-R50, 8 segments, non-local": ("tsn_r50", "non_local", (8, 224, 224)),
    "I3D-R18 at 112 pixels, non-local": ("i3d_r18_stem2", "non_local", (16, 112, 112)),
    "Inception-I3D, non-local": ("inception_i3d", "non_local", (16, 224, 224)),
    "I3D-R18 at 112 pixels, stand-alone": ("i3d_r18_stem2", "stand_alone", (16, 112, 112)),
}


def random_map(grid: Grid, heads: int, width: int) -> PairwiseMap:
    places = grid[0] * grid[1] * grid[2]
    q, k = (torch.randn(1, heads, places, width) for _ in range(2))
    return PairwiseMap(
        kind="pairwise",
        rows=torch.zeros(1, heads, 0, *grid),
        queries=torch.zeros(0, 3, dtype=torch.long),
        grid_q=grid,
        grid_k=grid,
        normalized=True,
        factors=Factors(q, k, "softmax", width**-0.5),
    )


def archive(maps: Maps, clip: Grid) -> MapArchive:
    frames = torch.randint(0, 255, (clip[0], 3, *clip[1:]), dtype=torch.uint8)
    smooth = torch.nn.functional.avg_pool2d(frames.float(), 9, 1, 4).to(torch.uint8)
    about = {"video": "random", "run": "random", "network": "random", "fps": 25.0, "truth": None}
    about |= {"numbers": list(range(clip[0])), "input": list(clip), "classes": [("none", 1.0)]}
    return MapArchive(maps, smooth, about | {"queries": []})


def open_browser() -> webdriver.Chrome:
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1440,1000")
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def measure_click(browser: webdriver.Chrome, folder: Path) -> list[float]:
    """Returns the seconds of each click, from `set` until pixels of all frames are read back."""
    path = folder / "click.html"
    maps: Maps = {"map": random_map(CLICK_GRID, CLICK_HEADS, CLICK_WIDTH)}
    write_explorer(path, [archive(maps, (CLICK_GRID[0], 224, 224))], Budget(96))
    browser.get(path.as_uri())
    browser.execute_script("return videoattn.ready")
    times: list[float] = browser.execute_script(
        """const times = [];
        for (let i = 0; i < arguments[0]; i++) {
          const start = performance.now();
          videoattn.set({ queries: [i] });
          for (const canvas of document.querySelectorAll("canvas")) {
            canvas.getContext("2d").getImageData(0, 0, 1, 1);
          }
          times.push((performance.now() - start) / 1000);
        }
        return times;""",
        CLICKS,
    )
    return times


def measure_open(browser: webdriver.Chrome, folder: Path) -> list[float]:
    """Returns the seconds of three loads, from the address to a painted page with a full budget."""
    one = random_map(CLICK_GRID, CLICK_HEADS, CLICK_WIDTH)
    maps: Maps = {f"layer{i}.0_map": one for i in range(40)}
    path = folder / "open.html"
    write_explorer(path, [archive(maps, (16, 224, 224))], Budget(OPEN_MEGABYTES))
    times = []
    for _ in range(3):
        browser.get("about:blank")
        start = time.monotonic()
        browser.get(path.as_uri())
        browser.execute_script("return videoattn.ready")
        times.append(time.monotonic() - start)
    return times


def measure_sizes(folder: Path) -> None:
    rows = []
    for title, (network, system, clip) in NETWORKS.items():
        torch.manual_seed(0)
        model = make_network(network, {}, num_classes=400)
        found = SYSTEMS[system]
        model = found.attach(model, info(model), found.make, (), system).eval()
        with torch.no_grad(), record_attention(model, queries=[], factors="instead") as maps:
            model(torch.randn(1, 3, *clip))
        path = folder / "size.html"
        missing = write_explorer(path, [archive(maps, clip)], Budget(384))
        grids = {"x".join(map(str, m.grid_q)) for m in maps.values() if isinstance(m, PairwiseMap)}
        megabytes = f"{path.stat().st_size / 1e6:.1f} MB"
        rows.append((title, str(len(maps)), ", ".join(sorted(grids)), megabytes, str(len(missing))))
    print_table(("network", "maps", "queries", "file", "left out"), rows)


def explorer(
    sizes: Annotated[bool, typer.Option(help="Also print the table of file sizes.")] = False,
) -> None:
    """Measure the explorer in headless Chromium."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        browser = open_browser()
        try:
            grid = "x".join(map(str, CLICK_GRID))
            times = {
                f"click to all frames painted, {grid}, {CLICK_HEADS} heads": measure_click(
                    browser, folder
                ),
                f"opening {OPEN_MEGABYTES} MB of maps": measure_open(browser, folder),
            }
        finally:
            browser.quit()
        rows = [
            (what, len(all_times), f"{statistics.median(all_times):.3f}", f"{max(all_times):.3f}")
            for what, all_times in times.items()
        ]
        print_table(("what", "times", "median seconds", "max"), rows)
        if sizes:
            measure_sizes(folder)


if __name__ == "__main__":
    typer.run(explorer)
