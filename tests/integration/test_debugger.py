"""smdebug in jobs: beside current packages it saves what happened, its own environment reads it, and rules judge it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from mlflow import MlflowClient

from experiments.config import RunConfig, load_config
from experiments.runs.folder import RECORDING
from lightning_modules.insight.recording import Recording
from sagemaker_launch.cli import main
from sagemaker_launch.container.hyperparameters import encode
from sagemaker_launch.container.smdebug.recorder import CONFIG_FILE, END_OF_JOB
from sagemaker_launch.container.smdebug.rules import RULES, make_rule
from sagemaker_launch.debugger.environment import read_tensors, run_rules
from sagemaker_launch.debugger.report import report_job
from sagemaker_launch.jobs.debugger_fields import hook
from sagemaker_launch.jobs.sync import Synchroniser
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.settings.debugger import DebuggerSettings
from sagemaker_launch.shipping.bundle import fetch_debugger
from sagemaker_launch.shipping.shipment import make_shipment
from tests.conftest import JOB_IMAGES, REPOSITORY, tiny
from tests.debug_trainings import COLLECTIONS, TRAININGS, write_config
from tests.integration.test_sync import Account
from tests.job_tree import lay_out, start_job
from tests.pictures import make_class_folders
from tests.shared_run import SharedRun
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC

pytestmark = pytest.mark.slow  # accounts of before 2026-07-30 only; the recorder does the same in every run

LOSS = "CrossEntropyLoss_output_0"


@pytest.fixture(scope="session")
def wheel(smdebug_environment: None) -> Path:
    """smdebug, downloaded once for all runs of the tests."""
    return fetch_debugger(JOB_IMAGES)


@pytest.fixture(scope="session")
def smdebug(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder from which it can be imported."""
    folder = tmp_path_factory.mktemp("smdebug")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


def run_beside(smdebug: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that has smdebug beside what is installed here."""
    path = os.pathsep.join([str(REPOSITORY), str(smdebug)])
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )


@pytest.fixture(scope="session")
def trained(smdebug: Path, tmp_path_factory: pytest.TempPathFactory, shared_run: SharedRun) -> Path:
    """The folder of all trainings of `debug_trainings`."""
    shared_run.note_build("trainings that Debugger watches")
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("trained")
    make_class_folders(photos, classes=3, per_class={"train": 16, "valid": 16, "test": 4}, size=24, seed=0)
    done = run_beside(smdebug, "-m", "tests.debug_trainings", str(out), str(photos), *TRAININGS)
    assert done.returncode == 0, done.stderr
    return out


def result(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return loaded


def judge(tensors: Path, names: Iterable[str] = RULES) -> dict[str, dict[str, Any]]:
    """What rules find, by their names."""
    asked = [{"RuleConfigurationName": name, "RuleParameters": {"rule_to_invoke": name}} for name in names]
    return {status["RuleConfigurationName"]: status for status in run_rules(JOB_IMAGES, tensors, asked)}


@pytest.mark.parametrize("name", ["healthy", "interrupted"])
def test_every_loss_reads_back_as_it_was_at_continued_steps(trained: Path, name: str) -> None:
    losses = read_tensors(JOB_IMAGES, trained / name / "tensors")["losses"][LOSS]
    live = result(trained / name)["losses"]
    for mode in ("TRAIN", "EVAL"):
        assert [value for _, _, value in losses[mode]] == live[mode]
        assert [step for _, step, _ in losses[mode]] == list(range(len(live[mode])))
    steps = sorted(step for mode in losses.values() for step, _, _ in mode)
    assert steps == list(range(len(live["TRAIN"]) + len(live["EVAL"])))


def test_layers_are_saved_as_reductions_at_their_interval(trained: Path) -> None:
    tensors = read_tensors(JOB_IMAGES, trained / "healthy" / "tensors")["tensors"]
    gradient = tensors["gradient/SqueezeNet_features.0.weight"]
    assert gradient["collection"] == "gradients"
    # Six batches of training and of validation an epoch, and every sixth is saved.
    assert [(point["step"], point["mode"]) for point in gradient["points"]] == [(12 * e, "TRAIN") for e in range(6)]
    weights = tensors["SqueezeNet_features.0.weight"]["points"]
    assert [point["mode"] for point in weights] == ["TRAIN", "EVAL"] * 6
    assert all({"mean", "std", "min", "max", "abs_mean", "l2_norm"} <= point.keys() for point in weights)
    assert weights[0]["l2_norm"] != weights[2]["l2_norm"]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("learning_rate", "ExplodingTensor"),
        ("zeroed_head", "VanishingGradient"),
        ("zeroed_head", "PoorWeightInitialization"),
        ("shuffled_labels", "LossNotDecreasing"),
    ],
)
def test_a_broken_training_trips_the_right_rule(trained: Path, name: str, rule: str) -> None:
    status = judge(trained / name / "tensors", [rule])[rule]
    assert status["RuleEvaluationStatus"] == "IssuesFound", status
    assert isinstance(status["step"], int)


def test_a_healthy_training_trips_no_rule(trained: Path) -> None:
    found = judge(trained / "healthy" / "tensors")
    assert {name: status["RuleEvaluationStatus"] for name, status in found.items()} == dict.fromkeys(
        RULES, "NoIssuesFound"
    )


@dataclass(frozen=True)
class RecordedStep:
    """A step of our recorder's, as the rules see one of smdebug's."""

    number: int
    mode: str
    loss: float
    gradients: Mapping[str, float]
    modes: tuple[str, ...] = ("TRAIN", "EVAL")

    def collection(self, name: str) -> list[str]:
        return {"losses": [LOSS], "gradients": list(self.gradients)}.get(name, [])

    def matching(self, patterns: list[str]) -> list[str]:
        return [LOSS, *self.gradients]

    def statistic(self, tensor: str, name: str) -> float | None:
        return {LOSS: self.loss, **self.gradients}[tensor] if name in ("mean", "abs_mean") else None

    def percentiles(self, tensor: str, low: float, high: float) -> None:
        return None


def recorded_steps(folder: Path) -> list[RecordedStep]:
    """All steps of a recording, counted as smdebug counts them: those of training and validation together."""
    recording = Recording.load(folder / "run" / RECORDING)
    gradients = {
        sample.step: dict(zip(recording.parameters, sample.gradient_mean.tolist(), strict=True))
        for sample in recording.samples
    }
    steps: list[RecordedStep] = []
    validation = list(zip(recording.validation_steps, recording.validation_losses, strict=True))
    for step, loss in zip(recording.train_steps, recording.train_losses, strict=True):
        steps.append(RecordedStep(len(steps), "TRAIN", loss, gradients.get(step, {})))
        for _, value in [point for point in validation if point[0] == step]:
            steps.append(RecordedStep(len(steps), "EVAL", value, {}))
    return steps


@pytest.mark.parametrize("name", ["healthy", "learning_rate", "zeroed_head", "shuffled_labels"])
def test_the_rules_find_the_same_in_our_recording_and_in_smdebugs_tensors(trained: Path, name: str) -> None:
    rules = ["VanishingGradient", "Overfit", "Overtraining", "LossNotDecreasing"]
    by_smdebug = judge(trained / name / "tensors", rules)
    steps = recorded_steps(trained / name)
    for rule_name in rules:
        rule = make_rule({"rule_to_invoke": rule_name})
        found = [step.number for step in steps if rule.at(step)]
        found += [steps[-1].number] if rule.end() else []
        theirs = by_smdebug[rule_name]
        assert (theirs["RuleEvaluationStatus"], theirs["step"]) == (
            ("IssuesFound", found[0]) if found else ("NoIssuesFound", None)
        ), rule_name


def test_our_recording_holds_the_gradients_that_smdebug_saved(trained: Path) -> None:
    tensors = read_tensors(JOB_IMAGES, trained / "healthy" / "tensors")["tensors"]
    ours = {step.number: step.gradients for step in recorded_steps(trained / "healthy")}
    compared = 0
    for name, entry in tensors.items():
        for point in entry["points"] if entry["collection"] == "gradients" else ():
            if gradients := ours[point["step"]]:
                assert gradients[name.partition("_")[2]] == pytest.approx(point["abs_mean"], rel=1e-3)
                compared += 1
    assert compared >= 52  # 26 weights, twice


def test_a_rule_that_has_nothing_to_judge_or_is_unknown_says_so(trained: Path, tmp_path: Path) -> None:
    found = judge(trained / "silent" / "tensors", ["VanishingGradient", "DeadRelu"])
    assert {status["RuleEvaluationStatus"] for status in found.values()} == {"Error"}
    assert "needs gradients" in found["VanishingGradient"]["StatusDetails"]
    assert "'DeadRelu'" in found["DeadRelu"]["StatusDetails"]
    (nowhere,) = judge(tmp_path, ["Overfit"]).values()
    assert "no collections" in nowhere["StatusDetails"]


def test_the_end_of_the_job_is_written_also_by_one_that_failed(trained: Path) -> None:
    assert "NotANumberError" in result(trained / "learning_rate")["error"]
    for name in TRAININGS.keys() - {"refused"}:
        assert (trained / name / "tensors" / END_OF_JOB).is_file(), name


def test_no_hook_is_left_once_training_is_over(trained: Path) -> None:
    assert {result(trained / name)["hooks_left"] for name in ("healthy", "interrupted", "sabotaged")} == {0}


def test_a_hook_that_turned_itself_off_fails_the_check_and_not_the_training(trained: Path) -> None:
    assert result(trained / "sabotaged")["epochs"] == [1, 2, 3]
    error = result(trained / "sabotaged")["error"]
    assert "DebuggerError: smdebug turned itself off at step 24" in error
    assert "Not a directory" in error


def test_a_hook_that_wrote_no_event_files_fails_the_check(trained: Path) -> None:
    assert "DebuggerError: smdebug saw 12 steps and wrote no event files" in result(trained / "silent")["error"]


def debugged_job(base: Path, photos: Path, wheel: Path, collections: dict[str, dict[str, str]]) -> tuple[int, str]:
    """Run a job from its bundle, where nothing is installed that a container lacks; exit code and standard error."""
    config = load_config(None, tiny(photos, base / "home") | {"trainer.max_epochs": 2})
    code = lay_out(base, encode(config), {"photos": photos}, debugger=wheel)
    write_config(base / CONFIG_FILE, base / "output" / "tensors", collections)
    job = start_job(base, code)
    _, errors = job.communicate(timeout=300)
    return job.returncode, errors


def test_a_job_with_the_service_s_file_leaves_model_and_tensors(photos: Path, tmp_path: Path, wheel: Path) -> None:
    code, errors = debugged_job(tmp_path / "ml", photos, wheel, COLLECTIONS)
    assert code == 0, errors
    assert (tmp_path / "ml" / "model" / "model.safetensors").is_file()
    read = read_tensors(JOB_IMAGES, tmp_path / "ml" / "output" / "tensors")
    assert read["modes"] == {"TRAIN": 6, "EVAL": 4}
    # On cached features the head is all that is trained.
    assert {name for name in read["tensors"] if name.startswith("gradient/")} == {
        "gradient/Linear_bias",
        "gradient/Linear_weight",
    }


def test_a_job_without_tensors_fails_after_its_model_is_there(photos: Path, tmp_path: Path, wheel: Path) -> None:
    code, _ = debugged_job(tmp_path / "ml", photos, wheel, {"losses": {"start_step": "1000000"}})
    assert code != 0
    assert (tmp_path / "ml" / "model" / "model.safetensors").is_file()
    assert "DebuggerError: smdebug saw 10 steps" in (tmp_path / "ml" / "output" / "failure").read_text()


def test_collections_that_smdebug_refuses_are_said_before_the_training(trained: Path) -> None:
    error = result(trained / "refused")["error"]
    assert "DebuggerError: smdebug refuses" in error and "Collection mine has not been configured" in error
    assert result(trained / "refused")["epochs"] == []


def test_a_shipment_for_a_job_that_is_debugged_has_code_of_its_own(photos: Path, tmp_path: Path, wheel: Path) -> None:
    config = load_config(None, tiny(photos, tmp_path) | {"data.cache_dir": JOB_IMAGES})
    settings = load_cloud(None, BASIC)
    plain, _ = make_shipment(settings, config)
    debugged, _ = make_shipment(settings, config, debugger=True)
    assert plain.bundle == make_shipment(settings, config, debugger=False)[0].bundle
    assert len(debugged.bundle.archive) > len(plain.bundle.archive) + 100_000


class DebugAccount(Account):
    """A training job that was debugged, and the bucket that its tensors are in."""

    def __init__(self, config: RunConfig, tensors: Path) -> None:
        super().__init__(config, ["Completed"])
        self.tensors = tensors

    def describe_hyper_parameter_tuning_job(self, HyperParameterTuningJobName: str) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "ResourceNotFound"}}, "Describe")

    def describe_training_job(self, TrainingJobName: str) -> dict[str, Any]:
        rules = [{"RuleConfigurationName": name, "RuleParameters": {"rule_to_invoke": name}} for name in RULES]
        status = {"RuleConfigurationName": "Overfit", "RuleEvaluationStatus": "IssuesFound", "StatusDetails": "<b>bad"}
        return super().describe_training_job(TrainingJobName) | {
            "DebugHookConfig": {"S3OutputPath": "s3://bucket/debug/"},
            "DebugRuleConfigurations": rules,
            "DebugRuleEvaluationStatuses": [status | {"LastModifiedTime": datetime(2026, 11, 25, 9, tzinfo=UTC)}],
        }

    def paginate(self, **given: Any) -> list[Mapping[str, Any]]:
        if self.operation != "list_objects_v2":
            return super().paginate(**given)
        assert given == {"Bucket": "bucket", "Prefix": "debug/tuning-000/debug-output/"}
        files = [path for path in self.tensors.rglob("*") if path.is_file()]
        return [{"Contents": [{"Key": self.key(path), "Size": path.stat().st_size} for path in files]}]

    def key(self, path: Path) -> str:
        return f"debug/tuning-000/debug-output/{path.relative_to(self.tensors).as_posix()}"

    def download_file(self, bucket: str, key: str, target: str) -> None:
        assert bucket == "bucket"
        shutil.copyfile(self.tensors / key.removeprefix("debug/tuning-000/debug-output/"), target)


def test_a_report_comes_from_the_bucket_and_goes_into_the_job_s_run(
    trained: Path, tmp_path: Path, mlflow_database: Path
) -> None:
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_database, tmp_path / "runs" / "mlflow.db")
    locations = {"output_dir": tmp_path / "runs", "data.cache_dir": JOB_IMAGES, "tracking.experiment": "cloud"}
    config = load_config(None, locations)
    account = DebugAccount(config, trained / "zeroed_head" / "tensors")
    synchroniser = Synchroniser(config, account, account, account, {"ml.g5.xlarge": 3.6}.__getitem__)
    page = report_job(config, "tuning-000", synchroniser)
    text = page.read_text()
    assert "&lt;b&gt;bad" in text and "2026-11-25 09:00:00" in text
    assert "step 0: 26 of 26 gradients are below 1e-07" in text
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cloud")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    pushed = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"debug-report.html", "debug.json", "debug_losses.png", "debug_gradients.png", "debug_weights.png"} <= pushed


def test_a_report_of_a_folder_is_beside_it_and_loads_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained / "healthy" / "tensors", tmp_path / "tensors")
    assert main(["debug-report", str(folder), "--data.cache_dir", str(JOB_IMAGES)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "tensors-debug-report.html"
    text = page.read_text()
    assert text.count("<img ") == text.count('alt="') == text.count("<details>") == 3
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "<script" not in text


@pytest.mark.slow
def test_the_default_costs_little_time_and_space(smdebug: Path, tmp_path: Path) -> None:
    # Both in one process, in turns: whatever else the machine does meets both alike.
    config = tmp_path / "config.json"
    config.write_text(json.dumps(hook(DebuggerSettings()) | {"LocalPath": str(tmp_path / "tensors")}))
    done = run_beside(smdebug, "-m", "benchmarks.debugger", str(config), "--steps", "60")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["share"] <= 0.05, measured
    assert measured["megabytes_of_10000_steps"] <= 50, measured
