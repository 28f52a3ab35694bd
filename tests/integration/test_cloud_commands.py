"""The cloud's command line: what it prints, refuses and leaves running. Nothing here needs a service."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution

from experiments.config import RunConfig, load_config
from experiments.console import invocation
from experiments.study.identity import Photos
from experiments.study.search_space import load_search_space
from experiments.study.study import open_study
from sagemaker_launch.aws import prices
from sagemaker_launch.aws.resources import TRAINING
from sagemaker_launch.cli import main
from sagemaker_launch.jobs.follow import JobFailedError, OwnLines, follow
from sagemaker_launch.jobs.launch import Launched
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from sagemaker_launch.shipping.shipment import find_image, make_shipment
from sagemaker_launch.shipping.storage import Inputs, Shipment
from tests.conftest import REPOSITORY, own_flags, tiny
from tests.unit.lightning_modules.test_export import export, tiny_network

CLOUD = f"--cloud={REPOSITORY / 'conf' / 'cloud' / 'example.yaml'}"


@pytest.fixture(autouse=True)
def _no_price_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "_listed_price", lambda *_: None)
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def fields(photos: Path, tmp_path: Path) -> list[str]:
    return [f"--{name}={value}" for name, value in tiny(photos, tmp_path).items()]


def test_a_dry_run_prints_the_whole_request_and_what_it_costs(
    fields: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--dry-run", CLOUD, *own_flags("cloud tune", fields)]) == 0
    printed = capsys.readouterr()
    request = json.loads(printed.out)
    assert request["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 3
    assert "3 jobs x 1 ml.g4dn.xlarge x 1.00 h x $0.7364/h = $2.21" in printed.err


@pytest.mark.parametrize("command", ["tune", "train"])
def test_a_job_is_sent_the_sizes_of_the_recipe_where_none_are_typed(
    command: str, fields: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    left_open = [flag for flag in fields if "image_size" not in flag and "crop_fraction" not in flag]
    assert main([command, "--dry-run", CLOUD, *own_flags(f"cloud {command}", left_open)]) == 0
    request = json.loads(capsys.readouterr().out)
    sent = (
        request["TrainingJobDefinition"]["StaticHyperParameters"] if command == "tune" else request["HyperParameters"]
    )
    assert (sent["data__image_size"], sent["data__crop_fraction"]) == ("224", "0.875")


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--cloud.budget_usd=2"], 2, "cloud.budget_usd must be at least 2.21, the worst case, got 2"),
        (["--cloud.instance_type=ml.p5.48xlarge"], 2, "set --price-per-hour"),
        (["--cloud.instance_type=ml.p5.48xlarge", "--price-per-hour=10"], 2, "must be at least 30.00"),
        (
            ["--cloud.budgt=2"],
            2,
            "cloud.budgt must be the name of a field, got 'cloud.budgt'; did you mean cloud.budget_usd?",
        ),
        (["--cloud.spot=true", "--cloud.checkpoints=false"], 2, "cloud.checkpoints must be true with cloud.spot"),
        (["--optimizer.lr=1"], 2, "did you mean optimizer.learning_rate?"),
        (["--search=none.yaml"], 2, "none.yaml"),
        (["--data.root=nowhere"], 2, "data.root must be a folder"),
        (["--cloud.strategy=Grid"], 2, "must be a choice"),
    ],
)
def test_what_can_not_be_started_is_refused_before_anything_is_created(
    fields: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("sagemaker_launch.jobs.plan.start_job", lambda *_, **__: pytest.fail("started"))
    assert main(["tune", CLOUD, *own_flags("cloud tune", fields), *more]) == code
    assert message in capsys.readouterr().err


def without_smdebug(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let a job be planned without the package that ships with it; what was asked for is noted."""
    asked: list[bool] = []

    def ship(
        settings: CloudSettings, config: RunConfig, *, debugger: bool, channels: Inputs | None
    ) -> tuple[Shipment, RunConfig]:
        asked.append(debugger)
        return real(settings, config, channels=channels)

    real = make_shipment
    monkeypatch.setattr("sagemaker_launch.jobs.plan.make_shipment", ship)
    return asked


def test_debug_puts_debugger_on_the_wire_and_into_the_sum(
    fields: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = without_smdebug(monkeypatch)
    assert (
        main(
            [
                "train",
                "--debug",
                "--dry-run",
                CLOUD,
                *own_flags("cloud train", fields),
                "--cloud.debugger.gradients_every=50",
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    request = json.loads(printed.out)
    collections = {
        collection["CollectionName"]: collection
        for collection in request["DebugHookConfig"]["CollectionConfigurations"]
    }
    assert collections["gradients"]["CollectionParameters"]["train.save_interval"] == "50"
    assert len(request["DebugRuleConfigurations"]) == 5
    assert "6 Debugger rules: free of charge" in printed.err
    assert shipped == [True]


def test_a_tuning_job_refuses_debugger_and_takes_the_recorder(
    fields: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_smdebug(monkeypatch)
    assert main(["tune", "--debug", "--dry-run", CLOUD, *own_flags("cloud tune", fields)]) == 2
    refused = capsys.readouterr().err
    assert "cloud.debugger.enabled must be false in a tuning job" in refused
    assert "--recorder" in refused
    assert main(["tune", "--recorder", "--dry-run", CLOUD, *own_flags("cloud tune", fields)]) == 0
    sent = json.loads(capsys.readouterr().out)["TrainingJobDefinition"]["StaticHyperParameters"]
    assert sent["trainer__record"] == '"light"'


def test_what_the_recorder_keeps_may_be_said_beside_it(fields: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "--recorder", "--dry-run", CLOUD, *own_flags("cloud train", fields), "--trainer.record=full"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["HyperParameters"]["trainer__record"] == '"full"'


def study_of(config: RunConfig, name: str) -> optuna.Study:
    """A study of 12 trials, of which the best have learning rates of about 0.05."""
    space = load_search_space(config.search or Path())
    study, _ = open_study(config, space, Photos("f" * 64, ("Beagle", "Poodle"), train=24, valid=8, test=8))
    ranges = {
        name: FloatDistribution(search_range.low, search_range.high, log=True) for name, search_range in space.items()
    }
    for number in range(12):
        rate = 0.01 * 1.3**number
        params = {"optimizer.learning_rate": rate, "optimizer.weight_decay": 1e-4}
        attrs = {"val_accuracy": 0.5}
        study.add_trial(
            optuna.create_trial(params=params, distributions=ranges, value=abs(rate - 0.05), user_attrs=attrs)
        )
    return study


def test_a_local_study_narrows_the_search_and_gives_its_best_settings(
    photos: Path, tmp_path: Path, fields: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(load_config(None, tiny(photos, tmp_path)), "tiny")
    assert main(["tune", "--dry-run", "--from-study", "tiny", CLOUD, *own_flags("cloud tune", fields)]) == 0
    printed = capsys.readouterr()
    (rate, _) = json.loads(printed.out)["HyperParameterTuningJobConfig"]["ParameterRanges"]["ContinuousParameterRanges"]
    assert 0.01 < float(rate["MinValue"]) < 0.05 < float(rate["MaxValue"]) < 0.2
    assert "optimizer.learning_rate: 0.01..0.2 (log) -> " in printed.err
    kept = [name for name in fields if "learning_rate" not in name]
    assert main(["train", "--dry-run", "--from-study", "tiny", CLOUD, *own_flags("cloud train", kept)]) == 0
    sent = json.loads(capsys.readouterr().out)["HyperParameters"]
    assert float(sent["optimizer__learning_rate"]) == study.best_params["optimizer.learning_rate"]


def test_awss_image_is_said_to_be_the_last_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = export(tiny_network(), tmp_path / "export")
    options = ["--cloud.endpoint.image_uri=x/pytorch-inference:2.6.0-cpu", f"--output_dir={tmp_path}"]
    assert main(["deploy", "dogs", "--model", str(model), "--image", "torchserve", "--dry-run", CLOUD, *options]) == 0
    printed = capsys.readouterr()
    assert "without patches since 2026-06-30" in printed.err
    requests = json.loads(printed.out)
    assert requests["CreateModel"]["PrimaryContainer"]["Image"] == "x/pytorch-inference:2.6.0-cpu"
    assert requests["CreateEndpoint"]["EndpointConfigName"] == requests["CreateEndpointConfig"]["EndpointConfigName"]
    assert main(["deploy", "dogs", "--model", str(model), "--dry-run", CLOUD, f"--output_dir={tmp_path}"]) == 0
    own = json.loads(capsys.readouterr().out)["CreateModel"]["PrimaryContainer"]["Image"]
    assert own.startswith("123456789012.dkr.ecr.us-east-1.amazonaws.com/local-first-experiments-serving:")


def test_awss_maintained_image_gets_what_it_deploys_also_from_an_older_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = export(tiny_network(), tmp_path / "export")
    (model / "config.yaml").unlink()
    command = ["deploy", "dogs", "--model", str(model), "--image", "aws", "--dry-run", CLOUD]
    assert main([*command, f"--output_dir={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert "has no config.yaml: the archive gets one, and today's code/inference.py" in printed.err
    container = json.loads(printed.out)["CreateModel"]["PrimaryContainer"]
    assert container["Image"] == "763104351884.dkr.ecr.us-east-1.amazonaws.com/ray:serve-ml-sagemaker-cpu-v1"
    assert container["Environment"] == {"RAY_USAGE_STATS_ENABLED": "0"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sagemaker_launch.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('boto3', 'torch', 'mlflow', 'optuna', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_newest_image_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def retrieve(**given: Any) -> str:
        asked.append(given)
        return "account/pytorch:2.14"

    core = types.ModuleType("sagemaker.core")
    core.image_uris = types.SimpleNamespace(retrieve=retrieve)
    monkeypatch.setitem(sys.modules, "sagemaker", types.ModuleType("sagemaker"))
    monkeypatch.setitem(sys.modules, "sagemaker.core", core)
    for _ in range(2):
        assert find_image(load_cloud(), "eu-west-1", tmp_path) == "account/pytorch:2.14"
    assert [query["region"] for query in asked] == ["eu-west-1"]
    (known,) = tmp_path.iterdir()
    for damaged in (b"", b'"account/pyt', b"\xff"):  # a kill, or a full disk
        known.write_bytes(damaged)
        for _ in range(2):
            assert find_image(load_cloud(), "eu-west-1", tmp_path) == "account/pytorch:2.14"
    assert len(asked) == 4, "each is looked up once more"

    def cut_off(path: Path, text: str) -> int:
        path.write_bytes(text[:5].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_off)
        with pytest.raises(OSError, match="No space left"):
            find_image(load_cloud(), "eu-west-2", tmp_path)
    assert list(tmp_path.iterdir()) == [known], "no half of a file"
    assert find_image(load_cloud(None, {"image_uri": "mine"}), "eu-west-1", tmp_path) == "mine"
    monkeypatch.setitem(sys.modules, "sagemaker.core", None)
    with pytest.raises(ValueError, match=r"cloud\.image_uri must be set"):
        find_image(load_cloud(), "us-east-1", tmp_path)


class Job:
    """A training job that is described in states, one after the other, and prints nothing."""

    def __init__(self, *states: str) -> None:
        self._states = iter(states)

    def describe_training_job(self, **_: Any) -> dict[str, Any]:
        state = next(self._states)
        return {"TrainingJobStatus": state, "SecondaryStatus": state, "FailureReason": "it broke"}

    def get_paginator(self, _: str) -> Job:
        return self

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        return [{"logStreams": []}]


def test_following_ends_with_the_job_and_passes_its_reason_on(capsys: pytest.CaptureFixture[str]) -> None:
    launched = Launched(TRAINING, "job", "arn", found=False)
    done = Job("InProgress", "InProgress", "Completed")
    assert follow(done, done, launched, 1.0, poll_seconds=0) == "Completed"
    assert capsys.readouterr().err.count("InProgress (InProgress)") == 1
    broken = Job("InProgress", "Failed")
    with pytest.raises(JobFailedError, match="job failed: it broke"):
        follow(broken, broken, launched, 1.0, poll_seconds=0)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(
    fields: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    def start(*_: Any, exists: Callable[[Launched], None], **__: Any) -> Launched:
        job = Launched(TRAINING, "job-1", "arn:x", False)
        exists(job)
        return job

    monkeypatch.setattr("sagemaker_launch.jobs.plan.start_job", start)
    monkeypatch.setattr("sagemaker_launch.jobs.follow.follow", interrupted)
    assert main(["train", CLOUD, *own_flags("cloud train", fields)]) == 130
    printed = capsys.readouterr().err
    assert "job-1 keeps running, for up to $0.74 an hour\n" in printed
    assert f"its results: {invocation('sagemaker_launch', 'sync', 'job-1')} " in printed
    assert f"to end it: {invocation('sagemaker_launch', 'stop', 'job-1')} " in printed
    assert "the same train command watches it again" in printed
    # With --again it would start another job as soon as this one is complete.
    assert main(["train", CLOUD, "--again", *own_flags("cloud train", fields)]) == 130
    assert "the same train command without --again watches it again" in capsys.readouterr().err


def test_what_the_toolkit_prints_around_a_script_is_left_out() -> None:
    log = [
        "Training Env:",
        '{"hosts": ["algo-1"]}',
        "ERROR: No matching distribution found",
        "Invoking script with the following command:",
        "2026 sagemaker-training-toolkit INFO     Exceptions not imported",
        "/opt/venv/bin/python -- entry.py --data__augment none --seed 1",
        '[facts] {"data.classes": "10", "data.valid_images": "341", "data.test_images": "372"}',
        "decoding: 12 photos, once for all trials",
        "[metrics] epoch=1 val_loss=1.04719 val_accuracy=0.5 train_loss=2.0 epoch_seconds=3.0 end",
        "[metrics] epoch=2 val_loss=0.9 val_acc",
        "[outcome] epoch=2 best_val_loss=0.9 test_loss=0.8 test_accuracy=0.75 end",
        "",
        "2026 sagemaker-training-toolkit INFO     Reporting training SUCCESS",
    ]
    kept = list(OwnLines().lines(log))
    assert kept == [
        "ERROR: No matching distribution found",
        "decoding: 12 photos, once for all trials",
        "epoch 1: val_loss 1.0472 val_accuracy 0.5000 [0.447, 0.553]",
        "[metrics] epoch=2 val_loss=0.9 val_acc",
        "ended: best_val_loss 0.9000 test_loss 0.8000 test_accuracy 0.7500 [0.704, 0.791]",
    ]
