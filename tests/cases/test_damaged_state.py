"""State files that something damaged: a message names the file and the damage, and what can be rebuilt is rebuilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import single_run as training
from experiments import sweep
from experiments.callbacks.checkpoints import CHECKPOINT_FOLDER
from experiments.config import RunConfig, load_config, override
from experiments.errors import InterruptedRunError, UserError
from experiments.interrupts import Watch
from experiments.report.report import report_studies
from experiments.runs.folder import Outcome, Published, RunFolder
from experiments.study import trials as study_trials
from experiments.study.storage import journal_file, study_folder
from experiments.study.study import load_study, trial_folder
from tests.conftest import tiny
from tests.kills import write_no_report
from tests.unpublished import NoPublisher


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    """What a file system may leave after a power cut."""
    path.write_bytes(b"\0" * path.stat().st_size)


def another(path: Path) -> None:
    path.write_text("[1, 2]")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One byte of a weight, as a bad disk may do."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGES = pytest.mark.parametrize("damage", [empty, zeros, another, cut])
Damage = Callable[[Path], None]


@pytest.fixture
def config(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(training, "Publisher", NoPublisher)
    monkeypatch.setattr(sweep, "Publisher", NoPublisher)
    monkeypatch.setattr(sweep, "report_studies", write_no_report)
    values = tiny(photos, tmp_path / "runs") | {"trainer.max_epochs": 4, "sweep.n_trials": 2, "sweep.sampler": "random"}
    return load_config(None, values)


def train(config: RunConfig) -> RunFolder:
    return training.train_run(config, training.run_path_prefix(config), "train", {})


def interrupted(config: RunConfig, epoch: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a training that was interrupted in an epoch, counted from 1."""

    def stop(self: Watch, trainer: object, *args: object, **named: object) -> None:
        if trainer.current_epoch + 1 == epoch:
            raise InterruptedRunError

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "on_train_batch_end", stop)
        with pytest.raises(InterruptedRunError):
            train(config)
    [folder] = config.output_dir.glob("train/*")
    return folder


def losses(folder: RunFolder) -> list[float]:
    return list(folder.curves()["val_loss"].values())


# A run


@DAMAGES
def test_a_run_whose_run_json_is_damaged_is_trained_again_and_loses_no_file(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    path = interrupted(config, 3, monkeypatch)
    damage(path / "run.json")
    folder = train(config)
    assert folder.path == path
    assert folder.outcome is not None and folder.outcome.state == "COMPLETE"
    assert len(losses(folder)) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{path / 'run.json'} is damaged, it has ")
    assert (path / "damaged-1" / "run.json").is_file()
    assert (path / "damaged-1" / CHECKPOINT_FOLDER / "last.ckpt").is_file()


def test_a_damaged_run_of_others_is_left_out_of_a_report(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    study = sweep.run_sweep(config).study
    other = RunFolder(config.output_dir / "train" / "other")
    other.start("other", {}, {})
    other.finish(Outcome("COMPLETE"))
    empty(other.path / "run.json")
    empty(trial_folder(config, 1).path / "run.json")
    capsys.readouterr()
    assert "trial 1" in report_studies([study], config).read_text().lower()
    printed = capsys.readouterr().err
    assert printed.count("run.json is damaged, it has no bytes") == 2


@DAMAGES
def test_what_mlflow_has_of_a_run_is_asked_again_where_its_note_is_damaged(
    tmp_path: Path, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.start("run", {}, {})
    folder.note_published(Published("store", "id", {}))
    damage(tmp_path / "published.json")
    assert folder.published == Published()
    assert f"{tmp_path / 'published.json'} is damaged: it has" in capsys.readouterr().err
    folder.note_published(Published("store", "id"))
    assert folder.run_id == "id"


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "7", '{"loss": 1}', "\xff\x00", '"text"'),
        '{"step": "1", "timestamp_ms": 1, "metrics": {}}',
        '{"step": 1, "timestamp_ms": 1, "metrics": {"val_loss": "low"}}',
        '{"step": 1, "timestamp_ms": 1, "metrics": 3}',
    ],
)
def test_a_foreign_line_among_the_metrics_is_left_out(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.start("run", {}, {})
    folder.record(1, {"val_loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    folder.record(2, {"val_loss": 0.4})
    assert folder.curves() == {"val_loss": {1: 0.5, 2: 0.4}}
    assert capsys.readouterr().err == f"{tmp_path}/metrics.jsonl: line 2 is no line of metrics, and is left out\n"


# Checkpoints


@pytest.mark.parametrize("damage", [empty, zeros, cut, flip])
def test_a_damaged_last_checkpoint_costs_the_epochs_after_the_best_one(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    whole = train(override(config, {"output_dir": config.output_dir / "whole"}))
    path = interrupted(config, 4, monkeypatch)
    damage(path / CHECKPOINT_FOLDER / "last.ckpt")
    assert losses(train(config)) == losses(whole)
    printed = capsys.readouterr().err
    assert "last.ckpt is damaged: the run is trained from its best epoch" in printed


@pytest.mark.parametrize("damage", [empty, cut, flip])
def test_a_damaged_best_checkpoint_costs_nothing(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    whole = train(override(config, {"output_dir": config.output_dir / "whole"}))
    path = interrupted(config, 3, monkeypatch)
    damage(path / CHECKPOINT_FOLDER / "best.ckpt")
    assert losses(train(config)) == losses(whole)
    assert "best.ckpt is damaged: it is written again from last.ckpt" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_both_damaged_is_trained_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = interrupted(config, 3, monkeypatch)
    for name in ("best.ckpt", "last.ckpt"):
        cut(path / CHECKPOINT_FOLDER / name)
    folder = train(config)
    assert folder.outcome is not None and folder.outcome.state == "COMPLETE"
    assert "best.ckpt is damaged: the run is trained again from its beginning" in capsys.readouterr().err


# A study


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\0\0\0\0", b"[1]\n\xff\xfe\n\n", b'{"op_code": 4, "wor'])
def test_garbage_at_the_end_of_a_journal_is_cut_off(config: RunConfig, garbage: bytes) -> None:
    before = sweep.run_sweep(config).study.trials
    with journal_file(config).open("ab") as file:
        file.write(garbage)
    trials = sweep.run_sweep(config, more=1).study.trials
    assert [trial.params for trial in trials[:2]] == [trial.params for trial in before]
    assert len(trials) == 3
    assert all(json.loads(line) for line in journal_file(config).read_bytes().splitlines())


@pytest.mark.parametrize("garbage", ["garbage", "[1]"])
def test_garbage_within_a_journal_is_named_and_the_study_is_made_again_without_training(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, garbage: str
) -> None:
    before = sweep.run_sweep(config).study.trials
    journal = journal_file(config)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:3], garbage, *lines[3:]]) + "\n")
    with pytest.raises(UserError, match=r"journal\.log is damaged after its entry 3: bring back a copy of it, or move"):
        sweep.run_sweep(config)
    journal.rename(journal.with_suffix(".damaged"))
    monkeypatch.setattr(study_trials, "train", None)
    trials = sweep.run_sweep(config).study.trials
    assert [(trial.params, trial.value) for trial in trials] == [(trial.params, trial.value) for trial in before]


@pytest.mark.parametrize("damage", [empty, another])
def test_a_damaged_identity_is_written_again(
    config: RunConfig, damage: Damage, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.run_sweep(config)
    damage(study_folder(config) / "study.json")
    with pytest.raises(UserError, match="seed must stay 0"):
        sweep.run_sweep(override(config, {"seed": 1}))
    assert "study.json is damaged" in capsys.readouterr().err
    sweep.run_sweep(config)
    assert json.loads((study_folder(config) / "study.json").read_text())["config"]["seed"] == 0


def test_a_study_whose_best_checkpoint_is_damaged_ends_without_a_model(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def damaged(config: RunConfig, folders: object, folder: Path, *args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "export", damaged)
        with pytest.raises(KeyboardInterrupt):
            sweep.run_sweep(config)
    best = load_study(config, "tiny").best_trial
    cut(trial_folder(config, best.number).path / CHECKPOINT_FOLDER / "best.ckpt")
    assert sweep.run_sweep(config).best.number == best.number
    assert (
        "best.ckpt is damaged: the study ends without a model, and `train --from-best tiny`" in capsys.readouterr().err
    )
