"""A job as the container runs it: from the bundle, without what a container lacks, with the numbers of a local run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torchvision.models import shufflenet_v2_x0_5

from experiments.config import RunConfig, load_config, override
from experiments.runs.folder import RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.train import train
from lightning_modules.export import check_golden
from lightning_modules.metrics import EPOCH_SECONDS, IMAGES_PER_SECOND, SUMMARY
from sagemaker_launch.container.hyperparameters import TUNING_OBJECTIVE, encode
from sagemaker_launch.container.metric_lines import parse_lines
from tests.conftest import tiny
from tests.job_tree import lay_out, run_job, start_job


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    return load_config(None, tiny(photos, tmp_path / "home"))


def epochs_of(output: str) -> dict[int, dict[str, float]]:
    """What a log says of each epoch, without what depends on the clock or repeats an earlier epoch."""
    lines = [line for line in parse_lines(output.splitlines()) if line.topic == "metrics"]
    return {line.epoch: _comparable(dict(line.metrics or {})) for line in lines}


def _comparable(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in (EPOCH_SECONDS, IMAGES_PER_SECOND, *SUMMARY)}


def test_a_job_has_the_metrics_of_a_local_run_to_the_last_digit(
    config: RunConfig, photos: Path, tmp_path: Path
) -> None:
    base = tmp_path / "ml"
    job = start_job(base, lay_out(base, encode(config), {"photos": photos}))
    output, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors

    folder = RunFolder(tmp_path / "local")
    folder.start("local", {}, {})
    train(config, output_dir=folder.path, logger=RunFolderLogger(folder))
    local = {line.step: _comparable(line.metrics) for line in folder.metric_lines()}
    assert len(local) == config.trainer.max_epochs
    assert epochs_of(output) == local

    check_golden(base / "model")
    (outcome,) = (line for line in parse_lines(output.splitlines()) if line.topic == "outcome")
    assert outcome.metrics is not None
    best = min(local.values(), key=lambda values: values["val_loss"])
    assert outcome.metrics["best_val_loss"] == best["val_loss"]
    assert outcome.metrics["best_val_accuracy"] == best["val_accuracy"]
    assert outcome.metrics["highest_val_accuracy"] == max(values["val_accuracy"] for values in local.values())
    assert "test_loss" in outcome.metrics
    assert (base / "output" / "data" / "scores.npz").is_file()
    left = {path.name for path in (base / "checkpoints").rglob("*") if path.is_file()}
    assert left == {"run.json", "metrics.jsonl"}, "later jobs of a search need not restore weights"


def test_a_checkpoint_of_its_own_channel_is_what_the_backbone_starts_from(
    config: RunConfig, photos: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights" / "mine.pth"
    weights.parent.mkdir()
    torch.manual_seed(5)
    torch.save(shufflenet_v2_x0_5().state_dict(), weights)
    config = override(config, {"model.weights": str(weights)})
    base, folder = tmp_path / "ml", RunFolder(tmp_path / "local")
    sent = encode(override(config, {"model.weights": weights.name}))
    job = run_job(base, lay_out(base, sent, {"photos": photos, "weights": weights.parent}))
    assert job.returncode == 0, job.stderr
    folder.start("local", {}, {})
    train(config, output_dir=folder.path, logger=RunFolderLogger(folder))
    assert epochs_of(job.stdout) == {line.step: _comparable(line.metrics) for line in folder.metric_lines()}


def test_a_tuned_job_leaves_the_test_split_alone(config: RunConfig, photos: Path, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    quoted = {name: json.dumps(value.strip('"')) for name, value in encode(config).items()}
    quoted[TUNING_OBJECTIVE] = "best_val_loss"
    job = run_job(base, lay_out(base, quoted, {"photos": photos}))
    assert job.returncode == 0, job.stderr
    assert "test_loss" not in job.stdout
    assert "best_val_loss" in job.stdout


@pytest.mark.slow
def test_a_killed_job_resumes_from_its_checkpoint_with_the_same_metrics(photos: Path, tmp_path: Path) -> None:
    config = load_config(None, tiny(photos, tmp_path / "home") | {"trainer.max_epochs": 40})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code = lay_out(whole, encode(config), {"photos": photos})
    job = start_job(whole, code)
    expected, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors

    code = lay_out(cut, encode(config), {"photos": photos})
    job = start_job(cut, code)
    assert job.stdout is not None
    first = ""
    while "epoch=3 " not in first:
        first += job.stdout.readline()
    job.kill()
    rest, _ = job.communicate()
    first += rest
    assert max(epochs_of(first)) < 40
    job = start_job(cut, code)
    second, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    # Lines of the first part may be lost on their way: the second prints them again, and trains none of their epochs.
    assert epochs_of(second) == epochs_of(expected)
    assert second.count("[metrics] epoch=1 ") == 1
    losses = [epochs_of(second)[epoch]["val_loss"] for epoch in range(1, 41)]
    reported = {line.epoch: line.metrics for line in parse_lines(second.splitlines()) if line.topic == "metrics"}
    assert [reported[epoch]["best_val_loss"] for epoch in range(1, 41)] == list(itertools.accumulate(losses, min))

    # The service may start it once more, when it was interrupted while the model was uploaded.
    job = start_job(cut, code)
    third, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    assert epochs_of(third) == epochs_of(expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimizer__learning_rate": "-1"}, "optimizer.learning_rate must be > 0"),
        (
            {"optimizer__lr": "1"},
            "optimizer.lr must be the name of a field, got 'optimizer.lr'; did you mean optimizer.learning_rate?",
        ),
        (
            {"optimizer__learning_rate": "1e30", "optimizer__name": "sgd", TUNING_OBJECTIVE: "best_val_loss"},
            "NotANumberError: diverged at epoch 1: val_loss is ",
        ),
    ],
)
def test_a_job_that_fails_leaves_a_short_reason(
    config: RunConfig, photos: Path, tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    base = tmp_path / "ml"
    job = run_job(base, lay_out(base, encode(config) | change, {"photos": photos}))
    assert job.returncode != 0
    failure = (base / "output" / "failure").read_text()
    assert reason in failure
    assert len(failure) <= 1024


def test_a_job_without_photos_says_so(config: RunConfig, tmp_path: Path) -> None:
    base = tmp_path / "ml"
    run_job(base, lay_out(base, encode(config), {}))
    assert "channel 'photos'" in (base / "output" / "failure").read_text()
