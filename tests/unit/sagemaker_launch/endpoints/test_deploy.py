"""What a deployment says and does where AWS refuses, loses an answer or is in a state of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from lightning_modules.openvino_cpu import FILES, INT8_FOLDER, INT8_GOLDEN, file_hashes
from sagemaker_launch.aws.logs import Log
from sagemaker_launch.aws.resources import LaunchError, UnansweredError
from sagemaker_launch.aws.running import Running
from sagemaker_launch.endpoints.deploy import DeployError, Golden, _has_failed, _update, deploy, set_lease
from sagemaker_launch.endpoints.fleet import Services
from sagemaker_launch.endpoints.lease import Lease
from sagemaker_launch.endpoints.query import Answer, BusyError, NoAnswerError, QueryError
from sagemaker_launch.endpoints.requests import deployment
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.settings.endpoint import Precision
from tests.unit.sagemaker_launch.jobs.test_requests import BASIC, ROLE

LEASE = Lease("anna", datetime.now(UTC) + timedelta(hours=4))
SCHEDULED = load_cloud(None, BASIC | {"endpoint.schedule_role_arn": ROLE})


def refusal(code: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, operation)


class Client:
    """A client of AWS whose calls are functions; one that there is none for fails the test."""

    def __init__(self, **calls: Callable[..., Any]) -> None:
        self.calls: list[str] = []
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**given: Any) -> Any:
            self.calls.append(name)
            return self._calls[name](**given)

        return call


def raising(error: Exception) -> Callable[..., Any]:
    def call(**_: Any) -> Any:
        raise error

    return call


def services(**clients: Client) -> Services:
    return Services(
        **{name: clients.get(name) for name in ("sagemaker", "autoscaling", "cloudwatch", "scheduler", "tagging")}
    )


def test_where_the_role_may_not_the_output_says_that_only_the_command_ends_the_endpoint() -> None:
    scheduler = Client(create_schedule=raising(refusal("AccessDeniedException", "CreateSchedule")))
    guard = set_lease(services(scheduler=scheduler), SCHEDULED, "dogs", LEASE, None, Running())
    assert "only `python -m sagemaker_launch delete --expired`" in guard
    assert "AccessDeniedException" in guard


def test_a_schedule_that_is_there_gets_the_new_time() -> None:
    times: list[str] = []
    scheduler = Client(
        create_schedule=raising(refusal("ConflictException", "CreateSchedule")),
        update_schedule=lambda **given: times.append(given["ScheduleExpression"]),
    )
    assert "AWS deletes it at" in set_lease(services(scheduler=scheduler), SCHEDULED, "dogs", LEASE, None, Running())
    assert LEASE.expires is not None
    assert times == [f"at({LEASE.expires:%Y-%m-%dT%H:%M:%S})"]


def test_an_endpoint_without_an_end_has_no_schedule_and_the_output_says_so() -> None:
    scheduler = Client(delete_schedule=lambda **_: None)
    endless = Lease("anna", None)
    assert "nothing ends it" in set_lease(services(scheduler=scheduler), SCHEDULED, "dogs", endless, None, Running())
    assert scheduler.calls == ["delete_schedule"]


@pytest.mark.parametrize("state", ["Updating", "InService"])
def test_an_update_whose_answer_got_lost_is_found(state: str) -> None:
    described = {"EndpointStatus": state, "EndpointConfigName": "new" if state == "InService" else "old"}
    sagemaker = Client(
        update_endpoint=raising(ReadTimeoutError(endpoint_url="x")), describe_endpoint=lambda **_: described
    )
    _update(services(sagemaker=sagemaker), {"EndpointName": "dogs", "EndpointConfigName": "new"})


def test_an_update_that_is_refused_is_not_taken_for_one_that_got_lost() -> None:
    described = {"EndpointStatus": "InService", "EndpointConfigName": "old"}
    sagemaker = Client(
        update_endpoint=raising(refusal("ValidationException", "UpdateEndpoint")),
        describe_endpoint=lambda **_: described,
    )
    with pytest.raises(LaunchError, match="AWS refuses the update of endpoint dogs"):
        _update(services(sagemaker=sagemaker), {"EndpointName": "dogs", "EndpointConfigName": "new"})


@pytest.mark.parametrize(
    ("error", "is_bad"),
    [
        (BusyError("busy"), False),
        (NoAnswerError("throttled"), False),
        (UnansweredError("no answer"), False),
        (refusal("ExpiredTokenException", "InvokeEndpoint"), False),
        (QueryError("the model says no"), True),
        (LaunchError("AWS refuses"), True),
    ],
)
def test_only_an_answer_about_the_version_removes_it(error: Exception, is_bad: bool) -> None:
    assert _has_failed(error) is is_bad


class Tags:
    """The pages of ListTags."""

    def __init__(self, **more: str) -> None:
        self._tags = {"project": "local-first-experiments", **more}

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        return [{"Tags": [{"Key": key, "Value": value} for key, value in self._tags.items()]}]


def test_an_endpoint_that_may_still_answer_is_not_removed_unasked() -> None:
    described = {
        "EndpointStatus": "UpdateRollbackFailed",
        "EndpointConfigName": "old",
        "EndpointArn": "arn",
        "CreationTime": datetime.now(UTC),
        "FailureReason": "no capacity",
    }
    sagemaker = Client(describe_endpoint=lambda **_: described)
    sagemaker.get_paginator = lambda _: Tags()
    version = deployment(load_cloud(None, BASIC), "dogs", "image", "s3://b/m")
    golden = Golden(b"", (0.0,))
    with pytest.raises(DeployError, match=r"UpdateRollbackFailed .*no capacity.*delete it, then deploy again"):
        deploy(
            services(sagemaker=sagemaker),
            load_cloud(None, BASIC),
            "dogs",
            version,
            LEASE,
            golden,
            Says([0.0]),
            Log(None, ""),
            running=Running(0.0, lambda _name: {}),
        )
    assert set(sagemaker.calls) == {"describe_endpoint"}


class Says:
    """A target that gives one list of logits."""

    max_body = 1000

    def __init__(self, logits: list[float]) -> None:
        self._logits = logits

    def ask(self, body: bytes, content_type: str, *, top_k: int | None = None) -> Answer:
        return Answer(json.loads(json.dumps([self._logits])), 5.0)


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "scores.json").write_text(json.dumps({"class_name": "b", "logits": [0.5, 2.0]}))
    (tmp_path / "golden" / "image.jpg").write_bytes(b"photo")
    return Golden.read(tmp_path, "float32")


def test_the_golden_photo_may_be_off_by_a_ten_thousandth(golden: Golden) -> None:
    difference, latency_ms = golden.check(Says([0.5, 2.00005]))
    assert difference == pytest.approx(5e-5) and latency_ms == 5.0


@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.4), ("int8", 0.06)])
def test_lower_precision_has_its_own_bound(golden: Golden, tmp_path: Path, precision: Precision, off: float) -> None:
    (tmp_path / INT8_FOLDER).mkdir()
    for name in FILES:
        (tmp_path / INT8_FOLDER / name).write_text(name)
    facts = {"tolerance": 0.1, "sha256": file_hashes(tmp_path / INT8_FOLDER)}
    (tmp_path / INT8_GOLDEN).write_text(json.dumps(facts))
    rough = Golden.read(tmp_path, precision)
    assert rough.check(Says([0.5, 2.0 + off]))[0] == pytest.approx(off)
    with pytest.raises(DeployError, match="the golden photo's logits are off by"):
        golden.check(Says([0.5, 2.0 + off]))
    with pytest.raises(DeployError, match="the golden photo's logits are off by"):
        rough.check(Says([0.5, 2.0 + 2 * off]))


def test_an_export_without_int8_has_no_bound_for_it(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"has no whole golden photo and scores: .*int8\.json"):
        Golden.read(tmp_path, "int8")


@pytest.mark.parametrize(
    "logits", [[0.5, 2.001], [2.0, 0.5], [0.5], [0.5, 2.0, 3.0], [float("nan"), 2.0], [0.5, float("nan")]]
)
def test_other_logits_are_refused(golden: Golden, logits: list[float]) -> None:
    with pytest.raises(DeployError, match="the golden photo's logits are off by"):
        golden.check(Says(logits))


class Scaled:
    """An endpoint that runs one version and scales, and its account."""

    def __init__(self, *, is_registered: bool = True, scaling_error: Exception | None = None) -> None:
        self.config, self.is_registered, self.scaling_error = "old", is_registered, scaling_error
        self.tags, self.schedule, self.instances = dict[str, str](), "", 1

    def services(self) -> Services:
        model = {"ProductionVariants": [{"ModelName": "old"}]}
        sagemaker = Client(
            describe_endpoint=lambda **_: self.describe(),
            describe_model=lambda ModelName: {"ModelName": ModelName},
            describe_endpoint_config=lambda EndpointConfigName: {"EndpointConfigName": EndpointConfigName, **model},
            update_endpoint=lambda EndpointConfigName, **_: self.update(EndpointConfigName),
            add_tags=lambda Tags, **_: self.tags.update({tag["Key"]: tag["Value"] for tag in Tags}),
            delete_model=lambda **_: None,
            delete_endpoint_config=lambda **_: None,
            update_endpoint_weights_and_capacities=lambda DesiredWeightsAndCapacities, **_: self.resize(
                DesiredWeightsAndCapacities[0]["DesiredInstanceCount"]
            ),
        )
        sagemaker.get_paginator = lambda operation: Tags(**self.tags) if operation == "list_tags" else Nothing()
        autoscaling = Client(
            describe_scalable_targets=lambda **_: {"ScalableTargets": [{}] if self.is_registered else []},
            deregister_scalable_target=lambda **_: self.deregister(),
            register_scalable_target=lambda **_: self.register(),
            put_scaling_policy=lambda **_: {"PolicyARN": "arn"},
        )
        cloudwatch = Client(put_metric_alarm=lambda **_: None, describe_alarms=lambda **_: {"MetricAlarms": []})
        scheduler = Client(
            create_schedule=lambda ScheduleExpression, **_: self.end_at(ScheduleExpression),
            delete_schedule=lambda **_: self.end_at(""),
        )
        return services(sagemaker=sagemaker, autoscaling=autoscaling, cloudwatch=cloudwatch, scheduler=scheduler)

    def describe(self) -> dict[str, Any]:
        created = datetime.now(UTC)
        state = {"EndpointArn": "arn", "EndpointStatus": "InService", "CreationTime": created}
        variants = [{"DesiredInstanceCount": self.instances}]
        return {**state, "EndpointConfigName": self.config, "ProductionVariants": variants}

    def resize(self, instances: int) -> None:
        assert not self.is_registered, "the scaling would change it again"
        self.instances = instances

    def update(self, config: str) -> None:
        self.config = config

    def deregister(self) -> None:
        self.is_registered = False

    def end_at(self, schedule: str) -> None:
        self.schedule = schedule

    def register(self) -> None:
        if self.scaling_error is not None:
            raise self.scaling_error


class Nothing:
    """The pages of an empty list."""

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        return [{"EndpointConfigs": [], "Models": []}]


@pytest.mark.parametrize(
    ("account", "scales", "logit", "missing"),
    [
        (Scaled(), True, 0.0, ""),
        (Scaled(), True, 1.0, ""),  # rolled back, with its scaling
        (Scaled(), False, 0.0, ""),  # asked for
        (Scaled(is_registered=False), False, 1.0, ""),
        (Scaled(), False, 1.0, "endpoint dogs may not scale any more: deploy it with the settings that it had before"),
        (
            Scaled(scaling_error=refusal("AccessDeniedException", "RegisterScalableTarget")),
            True,
            0.0,
            "endpoint dogs may not scale until the same command has succeeded",
        ),
    ],
)
def test_an_endpoint_is_said_not_to_scale_only_while_it_does_not(
    account: Scaled, scales: bool, logit: float, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagemaker_launch.endpoints.deploy.read_back", lambda *_: [])
    account.config = "old"
    settings = load_cloud(None, BASIC | ({"endpoint.max_instances": 2} if scales else {}))
    version, running = deployment(settings, "dogs", "image", "s3://b/m"), Running()
    golden, log = Golden(b"", (0.0,)), Log(None, "")
    with contextlib.suppress(DeployError, ClientError):
        deploy(account.services(), settings, "dogs", version, LEASE, golden, Says([logit]), log, running=running)
    assert account.config == ("old" if logit else version.config_name)
    assert running.missing == missing


@pytest.fixture
def unscaled(monkeypatch: pytest.MonkeyPatch) -> Scaled:
    monkeypatch.setattr("sagemaker_launch.endpoints.deploy.read_back", lambda *_: [])
    return Scaled(is_registered=False)


def update(account: Scaled, lease: Lease, *, logit: float) -> str:
    """Deploy another version, whose golden photo is right at 0; return what is said about its end."""
    version, running = deployment(SCHEDULED, "dogs", "image", "s3://b/m"), Running()
    golden, log, target = Golden(b"", (0.0,)), Log(None, ""), Says([logit])
    return deploy(account.services(), SCHEDULED, "dogs", version, lease, golden, target, log, running=running).guards


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Lease("anna", None), Lease("otto", NOW + timedelta(hours=4))),
        (Lease("anna", NOW + timedelta(hours=4)), Lease("otto", None)),
    ],
)
def test_an_update_that_fails_leaves_the_lease_as_it_was(unscaled: Scaled, before: Lease, after: Lease) -> None:
    unscaled.tags, unscaled.schedule = before.tags, "before"
    with pytest.raises(DeployError, match="answers with old as before"):
        update(unscaled, after, logit=1.0)
    assert (unscaled.tags, unscaled.schedule) == (before.tags, "before")
    guards = update(unscaled, after, logit=0.0)
    assert unscaled.tags.items() >= after.tags.items()
    assert unscaled.schedule == (f"at({after.expires:%Y-%m-%dT%H:%M:%S})" if after.expires else "")
    assert ("AWS deletes it at" if after.expires else "nothing ends it") in guards


@pytest.mark.parametrize("ends", [timedelta(minutes=-5), timedelta(minutes=5)])
def test_an_endpoint_does_not_expire_while_it_is_updated(unscaled: Scaled, ends: timedelta) -> None:
    unscaled.tags = Lease("anna", datetime.now(UTC) + ends).tags
    with pytest.raises(DeployError, match="answers with old as before"):
        update(unscaled, Lease("otto", None), logit=1.0)
    left = Lease.read(unscaled.tags)
    assert left.owner == "anna" and left.expires is not None and unscaled.schedule
    longest = timedelta(seconds=SCHEDULED.endpoint.update_timeout_seconds)
    assert timedelta(0) < left.expires - datetime.now(UTC) <= longest


def test_an_update_that_outlasts_its_lease_ends_soon_after(unscaled: Scaled) -> None:
    update(unscaled, Lease("otto", datetime.now(UTC) - timedelta(minutes=1)), logit=0.0)
    assert not Lease.read(unscaled.tags).has_expired() and unscaled.schedule


@pytest.mark.parametrize("is_registered", [True, False])  # False: a killed call has ended the scaling
def test_an_endpoint_that_scales_no_more_runs_the_instances_of_the_table(unscaled: Scaled, is_registered: bool) -> None:
    unscaled.config = deployment(SCHEDULED, "dogs", "image", "s3://b/m").config_name
    unscaled.instances, unscaled.is_registered = 3, is_registered
    update(unscaled, LEASE, logit=0.0)
    assert (unscaled.instances, unscaled.is_registered) == (1, False)
