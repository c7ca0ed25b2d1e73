"""A browser for the tests of pages. Without Chromium and its driver they fail."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--window-size=1440,1000",
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program is not None
    assert driver is not None, "apt-get install chromium chromium-driver"
    options = Options()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """The browser. A message on its console, or a request for anything, fails the test."""
    chromium.get_log("browser")
    yield chromium
    assert chromium.get_log("browser") == []
    used = chromium.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in used if not name.startswith(("data:", "blob:"))] == []


@pytest.fixture
def opened(browser: webdriver.Chrome) -> Callable[[Path], Callable[..., Any]]:
    """Opens a page; returns a function that runs a script in it, as `return ...`."""

    def open_page(path: Path, fragment: str = "") -> Callable[..., Any]:
        browser.get("about:blank")  # a change of the fragment alone would not load the page
        browser.get(path.as_uri() + fragment)
        browser.execute_script("return videoattn.ready")

        def run(script: str, *arguments: object) -> Any:
            return browser.execute_script(f"return {script}", *arguments)

        return run

    return open_page
