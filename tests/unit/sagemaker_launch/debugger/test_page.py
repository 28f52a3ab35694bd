"""What the report of a debug job shows."""

from __future__ import annotations

import math
from pathlib import Path

from sagemaker_launch.debugger.page import layers_plot, losses_plot, validations, write_report

EVIL = "<script>alert('layer')</script>"


def test_a_validation_is_the_mean_of_steps_that_follow_one_another() -> None:
    assert validations([(3, 1.0), (4, 3.0), (8, 5.0)]) == [(4, 2.0), (8, 5.0)]


def test_a_long_training_fits_into_a_table_with_its_first_and_last_step() -> None:
    plot = losses_plot({"loss": {"TRAIN": [(step, step, 1.0) for step in range(5000)]}})
    assert len(plot.table.rows) == 500
    assert [plot.table.rows[0][0], plot.table.rows[-1][0]] == ["0", "4999"]
    assert "5000 in all, the table shows 500" in plot.caption


def test_numbers_that_are_none_are_drawn_too() -> None:
    plot = layers_plot("gradients", "Gradients", "mean", {"a": {0: 0.0, 5: math.nan}, "b": {5: math.inf}})
    assert plot.table.rows == (("a", "0", "nan"), ("b", "—", "inf"))
    assert plot.png.startswith(b"\x89PNG")


def test_what_a_job_says_is_text_on_the_page(tmp_path: Path) -> None:
    layer = {"collection": "gradients", "points": [{"step": 0, "mode": "TRAIN", "abs_mean": 1.0}]}
    status = {"RuleConfigurationName": EVIL, "RuleEvaluationStatus": "IssuesFound", "StatusDetails": EVIL}
    page = tmp_path / "new" / "page.html"
    plots = write_report(
        EVIL, {"Job": EVIL}, {"losses": {}, "tensors": {EVIL: layer}}, [status | {"by": "me", "when": "step 0"}], page
    )
    text = page.read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") >= 5
    assert [plot.name for plot in plots] == ["losses", "gradients"]
    assert text.count("data:image/png;base64,") == 2
