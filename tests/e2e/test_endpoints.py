"""Deploy, query, update, delete against the rehearsal, by the commands that a person types; and what a kill leaves."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments.config import load_config, to_yaml
from lightning_modules.cores import has_int8
from lightning_modules.export import write_export
from lightning_modules.inference import load_export
from lightning_modules.openvino_cpu import INT8_FOLDER, INT8_GOLDEN, convert, file_hashes, write_converted
from sagemaker_launch.account.permissions import CALLS
from sagemaker_launch.aws import client as aws
from sagemaker_launch.cli import main
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping.archive import FILES
from tests.cloud import CLOUD, account, grant
from tests.conftest import REPOSITORY, own_flags, real, tiny
from tests.pictures import make_class_folders
from tests.unit.lightning_modules.test_export import BACKBONE, CLASS_NAMES, PREPROCESSING, tiny_network

PROJECT, BUCKET = "endpoints", "endpoints-rehearsal"
ROLE = "arn:aws:iam::123456789012:role/scheduler"
UUID = "-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
"""At the end of an alarm's name that autoscaling gives."""
SCRIPT = "--cloud.endpoint.image_uri=rehearsal.local/script"
BRIEF = ("--ttl", "1m", "--cloud.endpoint.startup_timeout_seconds=60")
"""A lease may not end before an instance has had its time to start."""
SERVER = """
import json, os, signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
MODEL = os.path.join(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "model")
GOLDEN = json.load(open(os.path.join(MODEL, "golden", "scores.json")))
BEST = {"predictions": [{"classes": [{"name": GOLDEN["class_name"], "score": 1.0}]}]}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        named = "X-Amzn-SageMaker-Custom-Attributes" in self.headers
        self.answer(BEST if named else [GOLDEN["logits"]])

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""
"""Answers each photo with the golden scores. Our own server imports PyTorch for seconds at each start."""
MUTATIONS = ("Create", "Update", "Delete", "Put", "Register", "Deregister", "AddTags")


class Killed(BaseException):
    """The process ends here: nothing that a program does about an exception happens."""


@dataclass
class Rehearsal:
    """A rehearsal, and what was called."""

    home: Path
    fields: list[str]
    calls: list[tuple[str, str]] = field(default_factory=list)
    kill_at: tuple[int, str] | None = None
    """Kill the process at this call, counting those that change something, `before` or `after` it is made."""
    changes: int = 0

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run one command; its exit code and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([arguments[0], *own_flags(f"cloud {arguments[0]}", self.fields), *arguments[1:]])
        return code, out.getvalue(), err.getvalue()

    def done(self, *arguments: str) -> str:
        """Run one command that has to succeed; what it printed."""
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return out + err

    def killed(self, at: int, when: str, *arguments: str) -> bool:
        """Run one command and kill it at a call; whether it got that far."""
        self.changes, self.kill_at = 0, (at, when)
        try:
            self.run(*arguments)
        except Killed:
            return True
        finally:
            self.kill_at = None
        return False

    def watch(self, name: str, client: Any) -> Any:
        """Note what a client calls, and kill where it is due."""

        def before(model: Any, **_: Any) -> None:
            self.calls.append((name, model.name))
            if name != "s3" and model.name.startswith(MUTATIONS):
                self.changes += 1
                self._kill("before")

        def after(model: Any, **_: Any) -> None:
            if name != "s3" and model.name.startswith(MUTATIONS):
                self._kill("after")

        client.meta.events.register("before-call", before)
        client.meta.events.register("after-call", after)
        return client

    def _kill(self, when: str) -> None:
        if self.kill_at == (self.changes, when):
            raise Killed

    def left(self) -> list[str]:
        """All that there is in the account of models, configs, endpoints and what belongs to them."""
        found: list[str] = []
        for name, call, key, name_key in (
            ("sagemaker", "list_endpoints", "Endpoints", "EndpointName"),
            ("sagemaker", "list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
            ("sagemaker", "list_models", "Models", "ModelName"),
            ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
            ("scheduler", "list_schedules", "Schedules", "Name"),
        ):
            client = account(name)
            found += [summary[name_key] for summary in getattr(client, call)()[key]]
        scaling = account("application-autoscaling")
        targets = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        found += [target["ResourceId"] for target in targets]
        return [re.sub(UUID, "", name) for name in found]

    def answers(self, name: str, *photos: Path) -> list[dict[str, Any]]:
        """What an endpoint says."""
        code, out, err = self.run("query", name, "--json", *map(str, photos))
        assert code == 0, err
        loaded: list[dict[str, Any]] = json.loads(out)
        return loaded


@pytest.fixture(scope="module")
def cloud(
    service_environment: Mapping[str, str],
    photos: Path,
    mlflow_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rehearsal]:
    home = tmp_path_factory.mktemp("endpoints")
    shutil.copy(mlflow_database, home / "mlflow.db")
    preset = home / "preset.yaml"
    preset.write_text(to_yaml(load_config(None, tiny(photos, home) | {"tracking.experiment": "endpoints"})))
    # Other tests use the same service at the same time: a project sees, counts and deletes only what is its own.
    own = [f"--cloud.project={PROJECT}", f"--cloud.bucket={BUCKET}", "--cloud.endpoint.rollout_wait_seconds=60"]
    own.append("--cloud.endpoint.schedule_role_arn=null")
    found = Rehearsal(home, [f"--config={preset}", f"--cloud={CLOUD}", *own])
    real_client = aws.client

    def watched(name: str, *given: Any, **options: Any) -> Any:
        return found.watch(name, real_client(name, *given, **options))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in service_environment.items():
            patch.setenv(name, value)
        account("s3").create_bucket(Bucket=BUCKET)
        for project in (PROJECT, "theirs"):
            grant(load_cloud(CLOUD, {"project": project, "bucket": BUCKET, "endpoint.schedule_role_arn": ROLE}))
        patch.setattr(aws, "client", watched)
        yield found


def tiny_export(folder: Path, seed: int) -> Path:
    """An export whose network is its own."""
    network = tiny_network()
    torch.manual_seed(seed)
    torch.nn.init.normal_(network.fc.weight, std=0.05)
    photo = next(make_photos(folder.parent / "golden").glob("test/*/*"))
    return write_export(
        network,
        folder,
        backbone=BACKBONE,
        class_names=CLASS_NAMES,
        preprocessing=PREPROCESSING,
        metrics={"val_loss": 0.5},
        data={},
        config={},
        golden_photos=[photo],
    )


def make_photos(root: Path) -> Path:
    if not root.exists():
        make_class_folders(root, classes=3, per_class={"train": 1, "valid": 1, "test": 2}, size=24, seed=0)
    return root


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("first") / "export", seed=1)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("second") / "export", seed=2)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, first: Path, second: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Both exports with a server of their own, for tests of an endpoint's life."""
    name = "code/serve.py"
    monkeypatch.setattr("sagemaker_launch.shipping.archive.FILES", (*FILES, name))
    copies = tmp_path / "scripted-1", tmp_path / "scripted-2"
    for export, copy in zip((first, second), copies, strict=True):
        shutil.copytree(export, copy)
        (copy / name).write_text(SERVER)
    return copies


def broken_golden(export: Path, folder: Path) -> Path:
    """An export that is whole, and answers otherwise on the endpoint than its golden scores say."""
    shutil.copytree(export, folder)
    scores = json.loads((folder / "golden" / "scores.json").read_text())
    scores["logits"] = [value + 1 for value in scores["logits"]]
    (folder / "golden" / "scores.json").write_text(json.dumps(scores))
    return folder


def test_an_endpoint_is_deployed_asked_updated_and_deleted_and_nothing_is_left(
    cloud: Rehearsal, first: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling = ["--cloud.endpoint.max_instances=2", f"--cloud.endpoint.schedule_role_arn={ROLE}"]
    twice = "--cloud.endpoint.budget_usd_per_hour=0.46"
    printed = cloud.done("deploy", "dogs", "--model", str(first), *scaling)
    assert "at worst  2 x ml.m5.large x $0.115/h = $0.23 an hour, $5.52 a day" in printed
    assert "AWS deletes it at" in printed
    everything = cloud.left()
    assert len(everything) == 8  # endpoint, config, model, alarm, schedule, scaling with two alarms of its own
    answers_as(cloud, "dogs", first)
    assert "1 endpoints run, $0.12 an hour" in cloud.done("status")
    _bad_photos_are_named(cloud, "dogs", first, tmp_path)

    cloud.done(
        "deploy", "dogs", "--model", str(first), *scaling, "--cloud.endpoint.budget_usd_per_hour=0.23", "--ttl=2d"
    )
    assert sorted(cloud.left()) == sorted(everything)  # the same version, with more time

    # The server itself refuses to start; what this machine would have found out before is left out.
    with monkeypatch.context() as patch:
        patch.setattr("sagemaker_launch.endpoints.plan._check", lambda model: "unchecked")
        wrong = broken_golden(second, tmp_path / "wrong")
        code, _, err = cloud.run("deploy", "dogs", "--model", str(wrong), *scaling, twice)
    assert code == 1 and "as before; what the update brought is removed" in err
    answers_as(cloud, "dogs", first)
    assert sorted(cloud.left()) == sorted(everything)

    code, _, err = cloud.run(
        "deploy", "dogs", "--model", str(second), *scaling, "--cloud.endpoint.budget_usd_per_hour=0.45"
    )
    assert code == 2 and "budget_usd_per_hour must be at least 0.46" in err  # two fleets while it is updated
    printed = cloud.done("deploy", "dogs", "--model", str(second), *scaling, twice)
    answers_as(cloud, "dogs", second)
    assert len(cloud.left()) == len(everything)
    of_this_python, delete = re.findall("^delete it: (.+) -m sagemaker_launch (.+)$", printed, re.MULTILINE)[0]
    assert Path(of_this_python).exists() or of_this_python == "python"
    assert main(shlex.split(delete)) == 0, "as it stands there, with the presets and fields that deploy was given"
    assert cloud.left() == []
    assert "there is nothing of that name" in cloud.done("delete", "dogs")
    _every_deployment_is_a_run(cloud, "dogs", ["FINISHED", "FINISHED", "FAILED", "FINISHED"])


@pytest.mark.slow
@pytest.mark.skipif(not has_int8(), reason="needs a processor with VNNI")
def test_an_endpoint_serves_the_network_in_int8_and_its_run_has_both_accuracies(
    cloud: Rehearsal, first: Path, tmp_path: Path
) -> None:
    rough = Path(shutil.copytree(first, tmp_path / "rough"))
    network = load_export(first).network
    with torch.no_grad():  # in place of rounding, so that the scores say which network answers
        network.get_parameter("fc.bias").add_(0.01)
    (rough / INT8_FOLDER).mkdir()
    write_converted(convert(network, PREPROCESSING.image_size), rough / INT8_FOLDER)
    accuracies = {"float32_val_accuracy": 0.75, "int8_val_accuracy": 0.8}
    facts = {"valid_images": 20, "changed_images": 1, "golden_difference": 0.01, "tolerance": 0.5, "refused": ""}
    (rough / INT8_GOLDEN).write_text(json.dumps(facts | accuracies | {"sha256": file_hashes(rough / INT8_FOLDER)}))
    precision = "--cloud.endpoint.precision=int8"
    printed = cloud.done("deploy", "rough", "--model", str(rough), precision)
    assert "int8: val_accuracy 0.8000, float32 0.7500, of 20 photos" in printed
    assert "the golden photo's logits are off by 0.01;" in printed and "in place of int8" not in printed
    (run,) = _deployments(cloud, "rough")
    assert run.data.params["cloud.endpoint.precision"] == "int8"
    assert {name: run.data.metrics[name] for name in accuracies} == accuracies
    assert run.data.tags["served_precision"] == "int8" and "val_accuracy 0.8000" in run.data.tags["int8"]

    # An OpenVINO that can't read it.
    (rough / INT8_FOLDER / "model.xml").write_text("of a newer version")
    (rough / INT8_GOLDEN).write_text(json.dumps(facts | accuracies | {"sha256": file_hashes(rough / INT8_FOLDER)}))
    twice = "--cloud.endpoint.budget_usd_per_hour=0.46"
    assert "the endpoint serves float32 in place of int8" in cloud.done(
        "deploy", "rough", "--model", str(rough), precision, twice
    )
    assert [run.data.tags["served_precision"] for run in _deployments(cloud, "rough")] == ["int8", "float32"]
    cloud.done("delete", "rough")


@pytest.mark.slow  # AWS's shortest limit of a start is a minute
@pytest.mark.skipif(torch.cuda.is_available(), reason="the server would find this machine's GPU")
def test_an_endpoint_with_gpus_fails_where_pytorch_sees_none(cloud: Rehearsal, first: Path) -> None:
    instance = ["--cloud.endpoint.instance_type=ml.g4dn.xlarge", "--cloud.endpoint.startup_timeout_seconds=60"]
    code, _, err = cloud.run("deploy", "gpu", "--model", str(first), *instance)
    assert code == 1 and re.search(r"this instance has a GPU, and PyTorch \S+ sees none", err), err
    assert cloud.left() == []


def answers_as(cloud: Rehearsal, name: str, export: Path) -> None:
    """An endpoint names the golden photo of an export as its trainer did."""
    golden = json.loads((export / "golden" / "scores.json").read_text())
    (answer,) = cloud.answers(name, export / "golden" / "image.jpg")
    scores = torch.tensor(golden["logits"], dtype=torch.float64).softmax(0).sort(descending=True).values
    assert answer["classes"][0][0] == golden["class_name"]
    assert [score for _, score in answer["classes"]] == pytest.approx(scores.tolist(), abs=1e-4)


def _bad_photos_are_named(cloud: Rehearsal, name: str, export: Path, folder: Path) -> None:
    photos = folder / "photos"
    photos.mkdir()
    (photos / "notes.jpg").write_text("no photo")
    whole = (export / "golden" / "image.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / f"{CLASS_NAMES[1]}_0001.jpg").write_bytes(whole)
    picture = folder / "out.png"
    code, out, err = cloud.run("query", name, str(photos), "--show", str(picture))
    assert code == 1 and "2 of 3 photos have no answer" in err
    assert "notes.jpg: the file is not a JPEG, PNG or WebP image" in out
    assert "half.jpg: the image is damaged" in out
    assert f"(is {CLASS_NAMES[1]})" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, _, err = cloud.run("query", name)
    assert code == 2 and "PHOTO must be given" in err
    code, _, err = cloud.run("query", "nobody", str(picture))
    assert code == 2 and "found none called nobody" in err


def _deployments(cloud: Rehearsal, name: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{cloud.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("endpoints")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], f"tags.endpoint = '{name}'", order_by=["start_time"])


def _every_deployment_is_a_run(cloud: Rehearsal, name: str, states: list[str]) -> None:
    found = _deployments(cloud, name)
    assert [run.info.status for run in found] == states
    run = found[0]
    assert run.data.tags["origin"] == "rehearsal"
    assert run.data.metrics["usd_per_hour"] == pytest.approx(0.23)
    assert run.data.metrics["golden_difference"] <= 1e-4
    assert run.data.metrics["first_latency_ms"] > 0
    assert run.data.params["image"] == "rehearsal.local/serving"
    assert run.data.params["model.archive"].startswith(f"s3://{BUCKET}/experiments/models/")


def test_a_model_that_scores_otherwise_gets_no_endpoint(
    cloud: Rehearsal, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = broken_golden(second, tmp_path / "wrong")
    code, _, err = cloud.run("deploy", "safe", "--model", str(wrong))
    assert code == 2 and "the golden photo scores" in err  # found on this machine
    monkeypatch.setattr("sagemaker_launch.endpoints.plan._check", lambda model: "unchecked")
    code, _, err = cloud.run("deploy", "safe", "--model", str(wrong))
    assert code == 1 and "all that was made is removed again: endpoint safe" in err
    assert "the golden photo scores" in err  # the server's own line, out of the endpoint's log
    assert cloud.left() == []


def victim(export: Path) -> list[str]:
    """The command that deploys an endpoint with all that one can have."""
    scaling = ["--cloud.endpoint.max_instances=2", f"--cloud.endpoint.schedule_role_arn={ROLE}"]
    return ["deploy", "victim", "--model", str(export), SCRIPT, *scaling]


def test_a_kill_while_an_endpoint_comes_up_or_goes_leaves_nothing_that_delete_does_not_find(
    cloud: Rehearsal, scripted: tuple[Path, Path]
) -> None:
    first, _ = scripted
    assert cloud.killed(5, "after", *victim(first))  # schedule, model, config, alarm, endpoint
    assert cloud.calls[-1] == ("sagemaker", "CreateEndpoint")
    cloud.done(*victim(first))  # it goes on
    assert cloud.killed(1, "after", "delete", "victim")
    cloud.done("delete", "victim")
    assert cloud.left() == []


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_of_deploy_leaves_nothing_that_delete_does_not_find(
    cloud: Rehearsal, scripted: tuple[Path, Path], when: str
) -> None:
    (first, _), steps = scripted, 0
    while cloud.killed(steps + 1, when, *victim(first)):
        steps += 1
        if steps % 2:  # every other time the same command goes on first
            cloud.done(*victim(first))
        cloud.done("delete", "victim")
        assert cloud.left() == []
    assert steps >= 6  # schedule, model, config, alarm, endpoint, scaling
    cloud.done("delete", "victim")


@pytest.mark.slow
def test_a_kill_at_any_step_of_an_update_is_mended_by_the_same_command(
    cloud: Rehearsal, scripted: tuple[Path, Path]
) -> None:
    exports, steps = scripted, 0
    cloud.done(*victim(exports[1]))
    twice = "--cloud.endpoint.budget_usd_per_hour=9"
    while cloud.killed(steps + 1, "after", *victim(exports[steps % 2]), twice):
        cloud.done(*victim(exports[steps % 2]), twice)
        assert len(cloud.left()) == 8  # endpoint, config, model, alarm, schedule, scaling with two alarms of its own
        steps += 1
    assert steps >= 8
    cloud.done("delete", "victim")
    assert cloud.left() == []


@pytest.mark.slow
def test_a_kill_at_any_step_of_delete_is_mended_by_the_next(cloud: Rehearsal, scripted: tuple[Path, Path]) -> None:
    (first, _), steps = scripted, 0
    cloud.done(*victim(first))
    while cloud.killed(steps + 1, "after", "delete", "victim"):
        cloud.done("delete", "victim")
        assert cloud.left() == []
        cloud.done(*victim(first))
        steps += 1
    assert steps >= 5  # endpoint with its scaling, config, model, alarm, schedule
    assert cloud.left() == []


def test_what_is_over_is_deleted_and_what_is_not_or_is_not_ours_stays(
    cloud: Rehearsal, scripted: tuple[Path, Path]
) -> None:
    (first, _), theirs = scripted, "--cloud.project=theirs"
    cloud.done("deploy", "short", "--model", str(first), *BRIEF, SCRIPT)
    cloud.done("deploy", "theirs", "--model", str(first), *BRIEF, SCRIPT, theirs)
    assert "no endpoint has expired" in cloud.done("delete", "--expired")
    sagemaker = account("sagemaker")
    for name in ("short", "theirs"):
        arn = sagemaker.describe_endpoint(EndpointName=name)["EndpointArn"]
        sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "expires", "Value": "2026-01-01T00:00:00Z"}])
    assert "delete --expired" in cloud.done("status")
    assert "short: deleted endpoint short" in cloud.done("delete", "--expired")
    assert len(cloud.left()) == 4  # endpoint, config, model, alarm
    for command in (["deploy", "theirs", "--model", str(first), SCRIPT], ["delete", "theirs"]):
        code, _, err = cloud.run(*command)
        assert code == 2 and f"must carry the tag project={PROJECT}" in err
    cloud.done("delete", "--expired", theirs)
    assert cloud.left() == []


@pytest.mark.slow
def test_the_schedules_role_ends_the_lease_of_a_scaled_endpoint(cloud: Rehearsal, scripted: tuple[Path, Path]) -> None:
    scaling = ["--cloud.endpoint.max_instances=2", f"--cloud.endpoint.schedule_role_arn={ROLE}"]
    cloud.done("deploy", "leased", "--model", str(scripted[0]), *BRIEF, SCRIPT, *scaling)
    assert sum("endpoint/leased/variant" in name for name in cloud.left()) == 3, "a target and two alarms"
    until = time.monotonic() + 120
    while time.monotonic() < until and "leased" in cloud.left():
        time.sleep(1)
    assert not any("endpoint/leased/variant" in name for name in cloud.left())
    cloud.done("delete", "leased")
    assert cloud.left() == []


def test_without_scaling_an_endpoint_returns_to_its_first_instances(
    cloud: Rehearsal, scripted: tuple[Path, Path]
) -> None:
    command = ["deploy", "fewer", "--model", str(scripted[0]), *BRIEF, SCRIPT]
    cloud.done(*command, "--cloud.endpoint.max_instances=2")
    sagemaker = account("sagemaker")
    desired = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    sagemaker.update_endpoint_weights_and_capacities(EndpointName="fewer", DesiredWeightsAndCapacities=desired)
    cloud.done(*command)
    (variant,) = sagemaker.describe_endpoint(EndpointName="fewer")["ProductionVariants"]
    assert variant["CurrentInstanceCount"] == 1
    cloud.done("delete", "fewer")
    assert cloud.left() == []


@pytest.mark.parametrize("kind", ["serverless", "async"])
@pytest.mark.slow
def test_other_kinds_answer_as_well(cloud: Rehearsal, scripted: tuple[Path, Path], kind: str) -> None:
    first, _ = scripted
    options = [f"--cloud.endpoint.kind={kind}", SCRIPT]
    if kind == "async":
        options += ["--cloud.endpoint.min_instances=0", "--cloud.endpoint.max_instances=2"]
    cloud.done("deploy", kind, "--model", str(first), *options)
    golden = json.loads((first / "golden" / "scores.json").read_text())
    (answer,) = cloud.answers(kind, first / "golden" / "image.jpg")
    assert answer["classes"][0][0] == golden["class_name"]
    code, _, err = cloud.run("deploy", kind, "--model", str(first), SCRIPT)
    assert code == 2 and f"cloud.endpoint.kind must stay {kind}" in err
    cloud.done("delete", kind)
    assert cloud.left() == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cloud.endpoint.budget_usd_per_hour=0.1"], "budget_usd_per_hour must be at least 0.12, the worst case"),
        (["--cloud.endpoint.instance_type=ml.p5.48xlarge"], "set --price-per-hour"),
        (["--ttl", "soon"], "--ttl must be a whole number"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_can_not_be_deployed_is_refused_before_anything_is_made(
    cloud: Rehearsal, first: Path, more: list[str], message: str
) -> None:
    before = len(cloud.calls)
    code, _, err = cloud.run("deploy", "no", "--model", str(first), *more)
    assert code == 2 and message in err
    assert not any(name.startswith(("Create", "Put")) for _, name in cloud.calls[before:])


def test_the_table_of_permissions_has_every_call_that_was_made(cloud: Rehearsal) -> None:
    """The rehearsal has enforced the policies that are built from it."""
    known = {(call.service, call.operation) for call in CALLS if "launcher" in call.callers}
    assert set(cloud.calls) <= known


@pytest.mark.slow
def test_a_model_that_was_trained_at_home_is_deployed_by_its_run_and_by_its_registered_name(cloud: Rehearsal) -> None:
    subprocess.run([sys.executable, "-m", "experiments", "train", cloud.fields[0]], check=True, cwd=REPOSITORY)
    client = MlflowClient(f"sqlite:///{cloud.home / 'mlflow.db'}")
    version = client.get_model_version_by_alias("endpoints", "champion")
    assert version.run_id is not None
    cloud.done("deploy", "home", "--run", version.run_id)
    described = boto3.client("sagemaker", region_name="us-east-1").describe_endpoint(EndpointName="home")
    cloud.done("deploy", "home", "--model", "models:/endpoints@champion")
    again = boto3.client("sagemaker", region_name="us-east-1").describe_endpoint(EndpointName="home")
    assert again["EndpointConfigName"] == described["EndpointConfigName"]  # it is the same model
    assert client.get_model_version("endpoints", version.version).tags["endpoint"] == "home"
    code, _, err = cloud.run("deploy", "home", "--run", "0" * 32)
    assert code == 2 and "--run must be a run of sqlite" in err
    cloud.done("delete", "home")


# The notebook's test trains, deploys, asks and deletes in each run of `make test`, with photos that need no download.
@pytest.mark.slow
def test_dogs_are_trained_deployed_asked_updated_and_deleted(cloud: Rehearsal, second: Path, tmp_path: Path) -> None:
    dogs, images = real("data/dogs6"), real("images")
    for photo in [photo for split in ("train", "valid") for breed in (dogs / split).iterdir() for photo in _few(breed)]:
        (tmp_path / photo.parent.relative_to(dogs)).mkdir(parents=True, exist_ok=True)
        (tmp_path / photo.relative_to(dogs)).symlink_to(photo)
    printed = cloud.done("train", f"--data.root={tmp_path}", "--data.image_size=64", "--trainer.max_epochs=2")
    job = next(line for line in printed.splitlines() if ":training-job/" in line).rpartition("/")[2]
    cloud.done("sync", job)
    client = MlflowClient(f"sqlite:///{cloud.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("endpoints")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.job = '{job}'")
    cloud.done("deploy", "dogs6", "--run", run.info.run_id)
    answers = cloud.answers("dogs6", images)
    assert len(answers) == 7
    assert all(len(answer["classes"]) == 5 and not answer["error"] for answer in answers)
    cloud.done("deploy", "dogs6", "--model", str(second))
    assert all(len(answer["classes"]) == 3 for answer in cloud.answers("dogs6", images))
    cloud.done("delete", "dogs6")
    assert cloud.left() == []


def _few(breed: Path) -> list[Path]:
    return sorted(breed.iterdir())[:20]
