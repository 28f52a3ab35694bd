"""Machines that share a study's database, and have disks of their own: a trial changes hands and is told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments import sweep
from experiments.callbacks.checkpoints import CHECKPOINT_FOLDER
from experiments.config import RunConfig, load_config, override
from experiments.study import trials as study_trials
from experiments.study.claims import Claim, HeldClaims
from experiments.study.search_space import load_search_space
from experiments.study.study import load_study, trial_folder
from experiments.study.trials import claim_trial
from lightning_modules.metrics import OBJECTIVES
from tests.conftest import tiny


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    values = tiny(photos, tmp_path / "here") | {"sweep.storage": f"sqlite:///{tmp_path}/study.db", "sweep.n_trials": 1}
    return load_config(None, values | {"sweep.claim_timeout_seconds": 0.5, "data.cache_dir": tmp_path / "cache"})


def take_elsewhere(config: RunConfig, tmp_path: Path) -> Claim:
    """What a second machine does when this one was silent for too long."""
    there = override(config, {"output_dir": tmp_path / "there"})
    assert config.search is not None
    space, study = load_search_space(config.search), load_study(there, "tiny")
    while True:
        taken = claim_trial(study, there, space, 1)
        if isinstance(taken, Claim):
            return taken


@pytest.mark.usefixtures("unpublished")
@pytest.mark.parametrize("told", [True, False], ids=["finished there", "left there too"])
def test_a_sweep_that_returns_after_its_trial_was_taken_reports_nothing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: bool
) -> None:
    taken: list[Claim] = []

    def suspended(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1 and not taken:
            taken.append(take_elsewhere(config, tmp_path))
            if told:
                for name in OBJECTIVES:
                    taken[0].trial.set_user_attr(name, 0.125)
                taken[0].trial.study.tell(taken[0].trial, 0.125)
            taken[0].lock.release()

    # As if the machine had been suspended: the heartbeat stands still too.
    monkeypatch.setattr(HeldClaims, "_beat_on", lambda self: None)
    monkeypatch.setattr(study_trials.EpochProgress, "on_train_epoch_start", suspended, raising=False)
    result = sweep.run_sweep(config)
    [trial] = result.study.trials
    folder = trial_folder(config, 0)
    assert "trial 0 belongs to another process on" in capsys.readouterr().err
    assert folder.outcome is not None
    if told:
        assert trial.value == 0.125
        assert list(trial.intermediate_values) == [1], "nothing was reported after the claim was lost"
        assert folder.outcome.state == "STOPPED"
        assert not folder.export.exists(), "an unfinished model is not the best one"
    else:
        assert folder.outcome.state == "COMPLETE"
        assert trial.value == folder.outcome.value
        assert sorted(trial.intermediate_values) == [1, 2, 3]
        assert folder.export.is_dir()
        assert not (folder.path / CHECKPOINT_FOLDER).exists()
