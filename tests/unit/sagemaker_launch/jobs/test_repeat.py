"""A job is repeated with its own photos and weights, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.config import RunConfig, load_config, override, to_flat
from experiments.data.inputs import open_data_once
from experiments.errors import UserError
from experiments.train import data_facts
from sagemaker_launch.aws.tags import to_tag_value
from sagemaker_launch.jobs.plan import plan_training
from sagemaker_launch.jobs.repeat import (
    WEIGHTS_PARAM,
    channels_of,
    config_for_another_job,
    config_for_home,
    experiment_of,
)
from sagemaker_launch.settings.cloud import EXPERIMENT_TAG, load_cloud
from tests.conftest import tiny
from tests.pictures import make_class_folders
from tests.unit.sagemaker_launch.jobs.test_plan import SETTINGS

CLOUD = load_cloud(None, SETTINGS)


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    weights = tmp_path / "mine.pt"
    weights.write_bytes(b"weights")
    values = tiny(photos, tmp_path) | {"model.weights": str(weights), "optimizer.learning_rate": 0.05}
    return load_config(None, values)


@pytest.fixture
def job(config: RunConfig) -> dict[str, Any]:
    """What AWS describes of a job of this config."""
    return plan_training(CLOUD, config).build("dogs-1")


def cats(folder: Path) -> Path:
    make_class_folders(folder / "cats", classes=2)
    return folder / "cats"


def test_without_a_config_a_job_is_repeated_on_its_own_channels(job: dict[str, Any]) -> None:
    again = config_for_another_job(RunConfig(), job, {})
    assert (again.model.weights, again.optimizer.learning_rate) == ("weights.pth", 0.05)
    request = plan_training(CLOUD, again, channels=channels_of(job)).build("dogs-2")
    assert channels_of(request) == channels_of(job)
    assert request["HyperParameters"] == job["HyperParameters"]


def test_the_same_photos_and_weights_may_be_named(job: dict[str, Any], config: RunConfig) -> None:
    other_settings = override(config, {"optimizer.learning_rate": 0.9})
    assert config_for_another_job(other_settings, job, {}).optimizer.learning_rate == 0.05
    typed = config_for_another_job(other_settings, job, {"optimizer.learning_rate": "0.2"})
    assert typed.optimizer.learning_rate == 0.2


def test_other_photos_are_refused(job: dict[str, Any], config: RunConfig, tmp_path: Path) -> None:
    others = override(config, {"data.root": cats(tmp_path)})
    with pytest.raises(UserError, match=r"data\.root must hold the photos of dogs-1, got other photos in .*cats"):
        config_for_another_job(others, job, {})


@pytest.mark.parametrize("weights", ["none", "other.safetensors"])
def test_other_weights_are_refused(
    job: dict[str, Any], config: RunConfig, tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match=r"model\.weights must be those of dogs-1 \(weights\.pth, .*got "):
        config_for_another_job(override(config, {"model.weights": weights}), job, {})


def test_a_job_of_another_program_is_refused(job: dict[str, Any]) -> None:
    foreign = job | {"InputDataConfig": job["InputDataConfig"][:1]}
    with pytest.raises(UserError, match=r"dogs-1 must be a job of this program, .*got \['photos'\]"):
        config_for_another_job(RunConfig(), foreign, {})


def params(config: RunConfig, job: dict[str, Any]) -> dict[str, str]:
    """Params of the job's run, as sync notes them."""
    noted = {name: str(value) for name, value in to_flat(config).items()} | {"model.weights": "weights.pth"}
    facts = {name: str(value) for name, value in data_facts(open_data_once(config)).items()}
    return noted | facts | {WEIGHTS_PARAM: str(channels_of(job).weights)}


def test_at_home_the_photos_and_weights_must_be_the_job_s(
    job: dict[str, Any], config: RunConfig, tmp_path: Path
) -> None:
    noted = params(config, job)
    assert config_for_home(config, "dogs-1", noted, {}).optimizer.learning_rate == 0.05
    others = override(config, {"data.root": cats(tmp_path)})
    with pytest.raises(UserError, match=r"data\.root must hold the photos of dogs-1 \(fingerprint .*cats with "):
        config_for_home(others, "dogs-1", noted, {})
    with pytest.raises(UserError, match=r"model\.weights must be those of dogs-1 .*got imagenet: name the same file"):
        config_for_home(override(config, {"model.weights": "imagenet"}), "dogs-1", noted, {})


def test_at_home_weights_that_need_no_file_are_the_job_s(config: RunConfig, job: dict[str, Any]) -> None:
    noted = params(config, job) | {"model.weights": "none"}
    del noted[WEIGHTS_PARAM]
    default = override(config, {"model.weights": RunConfig().model.weights})
    assert config_for_home(default, "dogs-1", noted, {}).model.weights == "none"


@pytest.mark.parametrize("name", ["dogs", "my dogs (2026), №1", "a=b"])
def test_a_job_remembers_the_experiment_that_it_was_launched_for(config: RunConfig, name: str) -> None:
    request = plan_training(CLOUD, override(config, {"tracking.experiment": name})).build("dogs-1")
    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    assert tags[EXPERIMENT_TAG] == to_tag_value(name)
    assert experiment_of(tags, RunConfig()) == name
    assert experiment_of({}, config) == config.tracking.experiment


def test_an_experiment_that_does_not_fit_into_a_tag_is_refused(config: RunConfig) -> None:
    with pytest.raises(ValueError, match=r"tracking\.experiment must have at most 256 characters as a tag"):
        plan_training(CLOUD, override(config, {"tracking.experiment": "(" * 100}))
