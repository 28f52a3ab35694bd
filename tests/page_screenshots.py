"""Renew the pictures of the report and of the terminal: python -m tests.page_screenshots REPORT SCREEN docs/images.

REPORT is the report.html of a study; SCREEN is a terminal's screen in the middle of a sweep, as text, such as
`tmux capture-pane -p` prints it.
"""

from __future__ import annotations

import html
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tests.mlflow_ui import chromium

HEIGHT = 1600
"""Of a page, in pixels: its first screens."""
COLORS = 48
TERMINAL = (
    "<body style='margin:0;background:#1c2126'><pre style='margin:0;padding:16px;display:inline-block;color:#e6eaee;"
    "font:14px/1.35 DejaVu Sans Mono,monospace'>{}</pre>"
)


def main(report: Path, screen: Path, folder: Path) -> None:
    """Take three pictures, small enough for a repository."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for width in (390, 1200):
            page = browser.new_page(viewport={"width": width, "height": HEIGHT})
            page.goto(report.resolve().as_uri())
            page.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 5")
            page.wait_for_timeout(1000)  # the plots are laid out once more after they are drawn
            page.screenshot(path=folder / f"report-{width}.png")
        _take_terminal(browser, screen.read_text().rstrip(), folder / "terminal.png")
        browser.close()
    for name in ("report-390.png", "report-1200.png", "terminal.png"):
        Image.open(folder / name).convert("RGB").quantize(COLORS).save(folder / name, optimize=True)


def _take_terminal(browser: Browser, text: str, path: Path) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_content(TERMINAL.format(html.escape(text)))
    page.locator("pre").screenshot(path=path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
