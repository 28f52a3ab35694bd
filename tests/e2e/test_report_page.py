"""The report in a browser: what fits into a telephone's window, and what says that it goes on outside of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from experiments.report.report import write_report
from tests.mlflow_ui import chromium
from tests.unit.experiments.report.test_report import sweep

# Texts of a plot that its own box cuts off, and boxes that go on outside of the window without saying so.
CLIPPED = """() => [...document.querySelectorAll('.plot')].flatMap(plot => {
    const box = plot.getBoundingClientRect();
    return [...plot.querySelectorAll('svg text')].filter(text => {
        const at = text.getBoundingClientRect();
        return at.width && (at.left < box.left - 1 || at.right > box.right + 1);
    }).map(text => text.textContent);
})"""
SILENT = """() => [...document.querySelectorAll('.scroll')].filter(box =>
    box.scrollWidth > box.clientWidth + 1 && box.previousElementSibling.hidden).length"""
NEEDLESS = """() => [...document.querySelectorAll('.scroll')].filter(box =>
    box.closest('details:not([open])') === null
    && box.scrollWidth <= box.clientWidth && !box.previousElementSibling.hidden).length"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_clipped_in_a_window_of_this_width(width: int, browser: Any, tmp_path: Path) -> None:
    study = sweep("a study with quite a long name, as people give them")
    study.set_user_attr("config", {"tracking.experiment": "dogs"})
    write_report([study], tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 5")
    page.wait_for_timeout(300)  # the plots are laid out once more after they are drawn
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CLIPPED) == []
    assert (page.evaluate(SILENT), page.evaluate(NEEDLESS)) == (0, 0)
