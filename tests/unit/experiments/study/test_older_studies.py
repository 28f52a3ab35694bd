"""A study and its run folders, written before the packages had their present names, still open."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.config import RunConfig, load_config
from experiments.report.report import report_studies
from experiments.runs.folder import RunFolder
from experiments.study.study import best_config, load_study
from tests.conftest import REPOSITORY

OLDER = REPOSITORY / "tests" / "studies"
"""Three trials of `sweep` on 2026-11-29, without pictures and exports."""


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    shutil.copytree(OLDER, tmp_path / "runs" / "studies")
    return load_config(None, {"output_dir": str(tmp_path / "runs"), "tracking.experiment": "photos"})


def test_its_trials_are_found_with_their_settings_and_values(config: RunConfig) -> None:
    study = load_study(config, "photos")
    best, trial = best_config(study, config)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert (trial.number, best.optimizer.learning_rate) == (0, trial.params["optimizer.learning_rate"])
    assert (best.model.backbone, best.trainer.max_epochs, best.data.image_size) == ("shufflenet_v2_x0_5", 3, 32)


def test_its_run_folders_have_their_curves_and_outcomes(config: RunConfig) -> None:
    folders = [RunFolder(path) for path in sorted((config.output_dir / "studies" / "photos" / "trials").iterdir())]
    outcomes = [folder.outcome for folder in folders]
    assert [outcome.state for outcome in outcomes if outcome] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert [len(folder.curves()["val_loss"]) for folder in folders] == [3, 3, 1]


def test_its_report_is_written(config: RunConfig) -> None:
    page = report_studies([load_study(config, "photos")], config)
    text = page.read_text()
    assert all(name in text for name in ("trial 0", "trial 1", "Beagle", "optimizer.weight_decay"))
