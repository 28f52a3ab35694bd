"""Calls of AWS that a look at many jobs takes, against moto and the rehearsal's lists, by boto3."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws

from sagemaker_launch import cli, status
from sagemaker_launch.aws.tag_index import TAGGING
from sagemaker_launch.container.metric_lines import metric_line
from sagemaker_launch.endpoints.fleet import Services
from sagemaker_launch.jobs.follow import Tails
from sagemaker_launch.jobs.found import children
from sagemaker_launch.rehearsal import moto_urls, tag_index
from sagemaker_launch.rehearsal.api import Regions, install
from sagemaker_launch.rehearsal.jobs.log import LogStream
from sagemaker_launch.rehearsal.jobs.log_search import install_log_search
from sagemaker_launch.rehearsal.jobs.training import TrainingJob, now
from sagemaker_launch.rehearsal.jobs.tuning import Child, TuningJob
from sagemaker_launch.rehearsal.service import Service
from sagemaker_launch.rehearsal.tag_index import install_tag_index
from sagemaker_launch.settings.cloud import CloudSettings, load_cloud
from tests.unit.sagemaker_launch.rehearsal.test_rules import TRAINING, TUNING

REGION, ACCOUNT = "us-east-1", "123456789012"
FOREIGN, TUNED, CHILDREN, SINGLE = 2000, 10, 70, 50
EARLIER = timedelta(minutes=5)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service of this process, whose jobs never run."""
    for url_paths in moto_urls.TABLES.values():
        for path in list(url_paths):
            monkeypatch.setitem(url_paths, path, url_paths[path])  # is put back
    machine: Any = SimpleNamespace(settings=SimpleNamespace(account=ACCOUNT))
    regions = Regions(machine)
    with mock_aws():
        install(regions)
        install_tag_index(regions)
        install_log_search()
        yield regions[REGION]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> CloudSettings:
    monkeypatch.setattr(status, "price_finder", lambda *_: {"ml.m5.large": 0.5, "ml.g5.xlarge": 1.0}.__getitem__)
    return load_cloud(None, {"region": REGION, "project": "ours"})


def tags(**values: str) -> list[dict[str, str]]:
    return [{"Key": key.replace("cloud_", "cloud."), "Value": value} for key, value in values.items()]


OURS = tags(project="ours", cloud_instance_type="ml.g5.xlarge", cloud_instance_count="1")


def add(service: Service, name: str, own: list[dict[str, str]], parent: TuningJob | None = None) -> TrainingJob:
    request = {**TRAINING, "TrainingJobName": name, "Tags": own}
    job = TrainingJob(service.arn("training-job", name), request, parent.arn if parent else None)
    job.created -= EARLIER
    service.training_jobs[name] = job
    if parent is not None:
        parent.children.append(Child(job, {}))
    return job


def add_tuning(service: Service, name: str, own: list[dict[str, str]], jobs: int) -> TuningJob:
    request = {**TUNING, "HyperParameterTuningJobName": name}
    job = TuningJob(service.arn("hyper-parameter-tuning-job", name), request, own)
    job.created -= EARLIER
    service.tuning_jobs[name] = job
    for number in range(jobs):
        add(service, f"{name}-{number:03d}-1a2b3c4d", own, job)
    return job


def counted(*clients: Any) -> Counter[str]:
    counts: Counter[str] = Counter()

    def count(model: Any, **_: Any) -> None:
        counts[model.name] += 1

    for client in clients:
        client.meta.events.register("before-call", count)
    return counts


def clients() -> Mapping[str, Any]:
    names = ("sagemaker", "application-autoscaling", "cloudwatch", "scheduler", TAGGING, "logs")
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": REGION}
    return {name: boto3.client(name, **keys) for name in names}


def open_services(opened: Mapping[str, Any]) -> Services:
    return Services(*(opened[name] for name in opened if name != "logs"))


def test_a_status_of_750_jobs_beside_2000_of_others_takes_few_calls(service: Service, settings: CloudSettings) -> None:
    for number in range(TUNED):
        add_tuning(service, f"dogs-exp-{number:010d}-1", OURS, CHILDREN)
    for number in range(SINGLE):
        add(service, f"dogs-exp-{number + TUNED:010d}-1", OURS)
    for number in range(FOREIGN):
        add(service, f"pytorch-training-{number}", tags(project="theirs"))
    opened = clients()
    calls = counted(*opened.values())
    table = status.status_table(open_services(opened), settings)
    assert table.endswith(f"{TUNED + SINGLE} jobs and 0 endpoints run, ${TUNED * CHILDREN + SINGLE:.2f} an hour")
    assert calls["ListTags"] == calls["DescribeTrainingJob"] == calls["DescribeHyperParameterTuningJob"] == 0
    assert calls.total() < 40, calls


def test_jobs_of_before_are_found_without_the_tags_and_the_part_of_the_name_that_jobs_have_now(
    service: Service, settings: CloudSettings
) -> None:
    add(service, "dogs-1a2b3c4d5e-1", tags(project="ours"))
    add_tuning(service, "cats-1a2b3c4d5e-1", tags(project="ours"), 2)
    add(service, "dogs-exp-1a2b3c4d5e-1", OURS)
    add(service, "pytorch-training-1", tags(project="theirs"))
    add(service, "pytorch-training-2", [])
    opened = clients()
    calls = counted(*opened.values())
    lines = status.status_table(open_services(opened), settings).splitlines()
    assert sorted(line.split()[0] for line in lines[:-1]) == [
        "cats-1a2b3c4d5e-1",
        "dogs-1a2b3c4d5e-1",
        "dogs-exp-1a2b3c4d5e-1",
    ]
    assert calls["DescribeTrainingJob"] == calls["DescribeHyperParameterTuningJob"] == 1


def test_a_job_that_the_index_does_not_have_yet_is_asked_for_its_tags(
    service: Service, settings: CloudSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_index, "_is_of", lambda *_: False)
    add(service, "dogs-exp-1a2b3c4d5e-1", OURS).created += EARLIER
    add(service, "cats-exp-1a2b3c4d5e-1", tags(project="theirs")).created += EARLIER
    first, last = status.status_table(open_services(clients()), settings).splitlines()
    assert first.startswith("dogs-exp-1a2b3c4d5e-1 ")
    assert last.startswith("1 jobs")


@pytest.mark.parametrize(
    ("operation", "words", "shown", "last"),
    [
        (
            "sagemaker.ListEndpoints",
            ["status"],
            "dogs-exp-1a2b3c4d5e-1 ",
            "the list is not complete: what is missing may",
        ),
        ("sagemaker.ListEndpoints", ["cost"], "dogs-exp-1a2b3c4d5e-1 ", ""),
        (
            "resource-groups-tagging-api.GetResources",
            ["delete", "--expired"],
            "",
            "endpoints whose lease has expired may still run, and cost money. The same command finds",
        ),
    ],
)
def test_a_list_that_breaks_off_has_shown_what_it_found_and_says_what_it_may_lack(
    service: Service,
    settings: CloudSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    operation: str,
    words: list[str],
    shown: str,
    last: str,
) -> None:
    def break_off(**_: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://aws")

    add(service, "dogs-exp-1a2b3c4d5e-1", OURS)
    opened = clients()
    for client in opened.values():
        client.meta.events.register(f"before-call.{operation}", break_off)
    monkeypatch.setattr("sagemaker_launch.aws.client.client", lambda name, *_, **__: opened[name])
    code = cli.main([*words, "--cloud.region=us-east-1", "--cloud.project=ours"])
    found = capsys.readouterr()
    assert shown in found.out
    assert (code, last in found.err.splitlines()[-1]) == (1, True) if last else code == 0


def test_warm_instances_are_listed_and_billed(service: Service, settings: CloudSettings) -> None:
    job = add(service, "dogs-exp-1a2b3c4d5e-1", OURS)
    job.request["ResourceConfig"] = {**TRAINING["ResourceConfig"], "KeepAlivePeriodInSeconds": 3600}
    job.training_seconds = 60
    job.finish("Completed", "Completed")
    assert job.ended is not None
    job.ended -= timedelta(seconds=300)
    opened = clients()
    first, last = status.status_table(open_services(opened), settings).splitlines()
    assert first.split() == ["dogs-exp-1a2b3c4d5e-1", "kept", "warm", "1", "x", "ml.g5.xlarge", "$1.00/h"]
    assert last.endswith("$1.00 an hour")
    cost = "\n".join(status.cost_lines(opened["sagemaker"], opened[TAGGING], settings))
    (billed,) = re.findall(r" (\d+) s on ml.g5.xlarge", cost)
    assert 360 <= int(billed) < 3660
    job.ended -= timedelta(seconds=3600)
    assert status.status_table(open_services(opened), settings).startswith("0 jobs")


def test_a_look_at_a_search_of_750_jobs_takes_few_calls_and_shows_each_line_once(
    service: Service, settings: CloudSettings
) -> None:
    del settings
    search = add_tuning(service, "dogs-exp-1a2b3c4d5e-1", OURS, 750)
    add_tuning(service, "dogs-exp-1a2b3c4d5e-12", OURS, 1)  # its name begins with that of the other
    group = "/aws/sagemaker/TrainingJobs"
    streams = [LogStream(ACCOUNT, REGION, group, f"{child.job.name}/algo-1-1") for child in search.children]
    moment = round(now().timestamp() * 1000)
    for stream in streams:
        stream.put([(moment, "noise"), (moment + 1, metric_line("metrics", 1, {"val_loss": 0.5}))])
    LogStream(ACCOUNT, REGION, group, "dogs-exp-1a2b3c4d5e-12-000-1a2b3c4d/algo-1-1").put([(moment, "[metrics]")])
    opened = clients()
    calls = counted(*opened.values())
    tails = Tails(opened["logs"], search.name)
    lines = list(tails.lines(children(opened["sagemaker"], search.name)))
    assert len(lines) == 750
    assert calls.total() <= 15, calls
    streams[0].put([(moment - 1, metric_line("metrics", 2, {"val_loss": 0.4}))])  # shown late, as CloudWatch may
    (line,) = tails.lines(children(opened["sagemaker"], search.name))
    assert line.startswith("dogs-exp-1a2b3c4d5e-1-000-1a2b3c4d: epoch 2")
