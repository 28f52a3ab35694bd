"""MLflow's UI as a person uses it: `python -m experiments ui`, its links opened in headless Chromium.

A test and the command that renews the README's pictures take the same steps.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from tests.conftest import REPOSITORY

PATIENCE_SECONDS = 30.0
"""How long something may take to appear on a page; two busy cores take a few seconds."""
RUN_NAME = "attributes.`Run Name`"
RUN_ID = "run_id"

# The table is drawn in two halves, of which each holds some of a run's cells.
READ_ROWS = """() => {
    const rows = {};
    for (const row of document.querySelectorAll('.ag-row[row-id]')) {
        const id = row.getAttribute('row-id');
        const cells = rows[id] ??= {run_id: id};
        for (const cell of row.querySelectorAll('.ag-cell')) {
            cells[cell.getAttribute('col-id')] = (cell.querySelector('a') ?? cell).innerText;
        }
    }
    return Object.values(rows);
}"""
READ_PLOTS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.data.map(trace => ({
    type: trace.type,
    name: trace.name,
    x: trace.x && [...trace.x],
    y: trace.y && [...trace.y],
    axes: trace.dimensions && trace.dimensions.map(axis => axis.label),
    drawn: plot.querySelectorAll('.axis-title, .scatterlayer .trace').length,
})))"""


def chromium() -> str:
    """Where Chromium is; where it may be absent, a skip."""
    path = shutil.which("chromium")
    if path is None:
        assert not os.environ.get("CI"), "CI installs chromium, and it is not there"
        pytest.skip("needs Debian's chromium")
    return path


@dataclass(frozen=True)
class Links:
    """What `python -m experiments ui` says is to be opened."""

    runs: str
    charts: str


@contextmanager
def serving_ui(output_dir: Path, experiment: str, log: Path) -> Iterator[Links]:
    """Run `python -m experiments ui` until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "experiments", "ui", "--port", str(port), "--output_dir", str(output_dir)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield _wait_for_links(experiment, process, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # asked to end, it takes ten seconds
        process.wait()


@contextmanager
def browsing(width: int, height: int, failed: Path) -> Iterator[MlflowUi]:
    """A page of the UI in headless Chromium.

    Args:
        failed: folder that gets a screenshot and the page's text if the block raises.
    """
    with sync_playwright() as playwright:
        # Chromium's sandbox needs namespaces, which containers rarely allow.
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        try:
            yield MlflowUi(page)
        except BaseException:
            page.screenshot(path=failed / "failed.png")
            (failed / "failed.txt").write_text(f"{page.url}\n{page.inner_text('body')}")
            raise
        finally:
            browser.close()


@dataclass(frozen=True)
class MlflowUi:
    """What a person does in the UI, step by step; each step waits until the page shows what it leads to."""

    page: Page

    def open(self, link: str) -> None:
        """Open a link, and close what MLflow puts in front of a newcomer."""
        self.page.goto(link)
        self._see(self.page.get_by_role("button", name="Hide banner"), "the banner of a saved view").click()
        # MLflow opens the panel of its assistant by itself on the first visit.
        assistant = self.page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
        self._see(assistant, "the assistant's panel").click()
        self.page.get_by_role("button", name="Toggle sidebar").click()
        self._see(self.rows.first, "a run in the table")

    @property
    def rows(self) -> Locator:
        """The rows of the table of runs, by the half that holds their names."""
        return self.page.locator(".ag-pinned-left-cols-container .ag-row")

    def row(self, run: str) -> Locator:
        """The row of a run."""
        return self.rows.filter(has=self.page.get_by_role("link", name=run, exact=True))

    def table(self) -> dict[str, dict[str, str]]:
        """What stands in the table, by run and column."""
        read = self.page.evaluate(READ_ROWS)
        return {cells[RUN_NAME]: cells for cells in read if RUN_NAME in cells}

    def unfold(self, parent: str) -> None:
        """Show the runs of a search."""
        before = self.rows.count()
        self.row(parent).locator(f"[col-id='{RUN_NAME}'] button").click()
        self._until(lambda: self.rows.count() > before, f"runs below {parent}")

    def search(self, expression: str, gone: str) -> None:
        """Filter the runs, until one that does not match has gone."""
        box = self.page.get_by_test_id("search-box")
        box.fill(expression)
        box.press("Enter")
        self._until(lambda: self.row(gone).count() == 0, f"a table without {gone}, filtered by {expression}")

    def paint(self, run: str, colour: str) -> None:
        """Choose the colour in which a run is drawn."""
        self.row(run).locator("input[type=color]").fill(colour, force=True)

    def compare(self, runs: Sequence[str], parameters: Sequence[str], metrics: Sequence[str]) -> None:
        """Select runs, press Compare, and draw some parameters and metrics as parallel coordinates."""
        for run in runs:
            self.row(run).locator(".ag-selection-checkbox input").click()
        self.page.get_by_role("button", name="Compare", exact=True).click()
        self._see(self.page.get_by_text(f"Comparing {len(runs)} Runs"), f"the comparison of {runs}")
        self.page.get_by_role("button", name="Clear All").click()
        for label, names in (("Parameters:", parameters), ("Metrics:", metrics)):
            self._choose(label, names)
        wanted = [*parameters, *metrics]
        self._until(lambda: any(plot[0]["axes"] == wanted for plot in self.plots()), f"a plot with axes {wanted}")

    def open_metric(self, name: str) -> None:
        """From a comparison, to the course of a metric that is in sight in its list."""
        link = self._see(self.page.get_by_role("link", name=name, exact=True), f"a link to metric {name}")
        comparison = self.page.url

        def drawn() -> bool:
            if self.page.url == comparison:  # MLflow may draw the page anew under a click, which then leads nowhere
                link.click()
            return any(len(plot) > 1 for plot in self.plots())

        self._until(drawn, f"a plot of {name} with several runs")

    def cells(self, name: str) -> list[str]:
        """What the compared runs have in a row of the comparison."""
        row = self.page.get_by_role("row").filter(has=self.page.get_by_role("rowheader", name=name, exact=True))
        self._see(row, f"row {name} of the comparison")
        return row.get_by_role("cell").all_inner_texts()

    def see_lines(self, plots: int, runs: int) -> None:
        """Wait for charts by epoch that have a line of each run."""

        def drawn() -> bool:
            found = [{line["name"] for line in plot} for plot in self.plots()[:plots]]
            return len(found) == plots and all(len(names) == runs for names in found)

        self._until(drawn, f"{plots} charts with a line of each of {runs} runs")

    def see_axes(self, names: Sequence[str]) -> None:
        """Wait for parallel coordinates with these axes."""
        labels = self.page.locator(".parcoords .dimension .label")
        message = f"not on the page: axes {names}"
        expect(labels, message).to_have_text(list(names), timeout=PATIENCE_SECONDS * 1000)

    def plots(self) -> list[list[dict[str, Any]]]:
        """The traces of each plot on the page, as Plotly has drawn them."""
        found: list[list[dict[str, Any]]] = self.page.evaluate(READ_PLOTS)
        return found

    def keep(self, path: Path) -> None:
        """A picture of what is in sight."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(500)  # what faded in has faded in
        self.page.screenshot(path=path)

    def _choose(self, label: str, names: Sequence[str]) -> None:
        self.page.get_by_text(label, exact=True).locator("xpath=following-sibling::div[1]").click()
        for name in names:
            self.page.keyboard.type(name)
            option = self.page.locator(f".rc-virtual-list [title='{name}']:visible")
            self._see(option, f"{name} among {label}").click()
        self.page.keyboard.press("Escape")

    def _see(self, locator: Locator, description: str) -> Locator:
        expect(locator, f"not on the page: {description}").to_be_visible(timeout=PATIENCE_SECONDS * 1000)
        return locator

    def _until(self, condition: Callable[[], bool], description: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"not on the page: {description}"
            self.page.wait_for_timeout(200)


def _wait_for_links(experiment: str, process: subprocess.Popen[bytes], log: Path) -> Links:
    """What the command prints when its server answers."""
    deadline = time.monotonic() + 120
    while True:
        printed = log.read_text()
        links = [re.search(rf"^{experiment}, {kind}: +(\S+)$", printed, re.MULTILINE) for kind in ("runs", "charts")]
        if all(links):
            return Links(*(str(link[1]) for link in links if link))
        assert process.poll() is None, f"it has ended: {printed}"
        assert time.monotonic() < deadline, f"no links to experiment {experiment} in: {printed}"
        time.sleep(0.2)
