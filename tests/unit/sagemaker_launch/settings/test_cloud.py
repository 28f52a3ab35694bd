"""Cloud settings: presets, overrides, and what no job can use."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sagemaker_launch.cli import command_parser
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import REPOSITORY

PRESETS = [path for path in sorted((REPOSITORY / "conf" / "cloud").glob("*.yaml")) if path.stem != "prices"]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_is_enough_for_a_job(path: Path) -> None:
    load_cloud(path).require_for_jobs()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf" / "cloud").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_opens_with_a_command_that_exists(path: Path) -> None:
    command = path.read_text().splitlines()[0].partition("# python -m sagemaker_launch ")[2]
    arguments, rest = command_parser().parse_known_args(shlex.split(command))
    assert rest == []
    assert (REPOSITORY / arguments.cloud).is_file()
    assert path.stem == "prices" or (REPOSITORY / arguments.cloud) == path


def test_mappings_and_lists_come_from_yaml_and_from_the_command_line(tmp_path: Path) -> None:
    preset = tmp_path / "cloud.yaml"
    preset.write_text("tags: {team: vision}\nsubnets: [a, b]\nsecurity_group_ids: [c]\nenvironment: {}\n")
    settings = load_cloud(preset, {"tags": "{team: sound}", "spot": "true"})
    assert settings.tags == {"team": "sound"}
    assert settings.subnets == ["a", "b"]
    assert settings.spot is True


@pytest.mark.parametrize("bucket", ["my-bucket", "my.dotted.bucket", "123", "dogs-x-s3", "s3alias"])
def test_names_of_buckets_are_taken(bucket: str) -> None:
    assert load_cloud(None, {"bucket": bucket}).bucket == bucket


def test_an_unknown_field_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ValueError, match=r"^budgt_usd must be the name of a field, got 'budgt_usd'; did you mean budget_usd"
    ):
        load_cloud(None, {"budgt_usd": "5"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"role_arn": "my-role"}, r"cloud\.role_arn must look like arn:aws:iam"),
        ({"bucket": "s3://my-bucket"}, r"cloud\.bucket must be the name of a general purpose bucket"),
        ({"bucket": "dogs--use1-az4--x-s3"}, "general purpose bucket"),
        ({"bucket": "dogs-abcdefgh-s3alias"}, "general purpose bucket"),
        ({"bucket": "arn:aws:s3:us-east-1:123456789012:accesspoint/dogs"}, "general purpose bucket"),
        ({"bucket": "my..bucket"}, "general purpose bucket"),
        ({"bucket": "192.168.5.4"}, "general purpose bucket"),
        ({"spot": True, "checkpoints": False}, r"cloud\.checkpoints must be true with cloud\.spot"),
        ({"max_wait_seconds": 10}, r"cloud\.max_wait_seconds must be left out without cloud\.spot"),
        ({"spot": True, "max_wait_seconds": 10}, r"cloud\.max_wait_seconds must be >= cloud\.max_runtime_seconds"),
        ({"subnets": ["a"]}, r"cloud\.subnets must come together with security_group_ids"),
        ({"security_group_ids": ["a"]}, r"cloud\.subnets must come together with security_group_ids"),
        ({"strategy": "Hyperband", "early_stopping": True}, r"cloud\.early_stopping must be false with strategy Hyper"),
        ({"strategy": "Grid", "warm_start_from": ["a"]}, r"cloud\.warm_start_from must be left out with strategy"),
        ({"tags": {"project": "x"}}, r"cloud\.tags must leave 'project' to cloud\.project"),
        ({"budget_usd": 0}, r"cloud\.budget_usd must be > 0"),
        ({"instance_type": "m5.large"}, r"cloud\.instance_type must begin with ml\."),
        ({"keep_alive_seconds": 60, "spot": True}, r"cloud\.keep_alive_seconds must be 0 with cloud\.spot"),
    ],
)
def test_what_no_job_can_use_is_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_cloud(None, values)


@pytest.mark.parametrize("missing", ["role_arn", "bucket"])
def test_what_every_job_needs_is_asked_for_with_an_example(missing: str) -> None:
    given = {"role_arn": "arn:aws:iam::123456789012:role/x", "bucket": "my-bucket"}
    del given[missing]
    with pytest.raises(ValueError, match=rf"cloud\.{missing} must be set \(--cloud\.{missing} "):
        load_cloud(None, given).require_for_jobs()
