"""Renew the README's pictures of MLflow's UI: python -m tests.screenshots RUNS EXPERIMENT docs/images.

RUNS is the output_dir of a local sweep into whose experiment a tuning job was synchronised, as docs/cloud.md describes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from tests.mlflow_ui import RUN_ID, Links, MlflowUi, browsing, serving_ui

BEST = "metrics.`best_val_loss`"
RUNS_OF_EACH = 3


def take(links: Links, folder: Path, failed: Path) -> None:
    """Three pictures: the table of runs, a comparison of the best of both origins, their courses by epoch."""
    with browsing(1600, 800, failed) as ui:
        ui.open(links.runs)
        for parent in list(ui.table()):
            ui.unfold(parent)
        keep(ui, folder / "mlflow-runs.png")
        table = ui.table()
        local, cloud = (best_trained(table, origin) for origin in ("local", "rehearsal"))
        tuned = [column.split("`")[1] for column in table[local[0]] if column.startswith("params.")]
        ui.compare([*local, *cloud], tuned, ["best_val_loss"])
        keep(ui, folder / "mlflow-compare.png")
        ids = [str(table[name][RUN_ID]) for name in (local[0], cloud[0])]
    with browsing(1400, 800, failed) as ui:
        ui.open(links.charts)
        ui.search(f"attributes.run_id IN ({', '.join(map(repr, ids))})", gone=local[-1])
        # MLflow colours a run by its ID, which makes some alike; whoever clicks on a run's dot chooses another colour.
        ui.paint(local[0], "#1f77b4")
        ui.paint(cloud[0], "#ff7f0e")
        ui.see_lines(plots=2, runs=2)
        ui.page.mouse.move(700, 500)
        ui.page.mouse.wheel(0, 440)  # to the second section
        keep(ui, folder / "mlflow-epochs.png")


def best_trained(table: dict[str, dict[str, str]], origin: str) -> list[str]:
    """The best runs of an origin, the best first."""
    found = {
        name: float(cells[BEST])
        for name, cells in table.items()
        if cells["tags.`origin`"] == origin
        and any(value != "-" for column, value in cells.items() if column.startswith("params."))
    }
    return sorted(found, key=lambda name: found[name])[:RUNS_OF_EACH]


def keep(ui: MlflowUi, path: Path) -> None:
    """Save what is in sight, small enough for a repository."""
    ui.keep(path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    runs, experiment, folder = sys.argv[1:]
    with serving_ui(Path(runs), experiment, Path(runs) / "ui.log") as links:
        take(links, Path(folder), Path(runs))
