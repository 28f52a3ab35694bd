"""S3 has a part of a job's files: no error, no epoch lost that S3 had, and the model is the one of the objective."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random
from typing import Any

import pytest

from experiments.config import RunConfig, load_config
from tests.conftest import tiny
from tests.interruptions import Files, JobOnThisMachine, epochs_with_weights, part_of, result_of, versions_of

INTERRUPTIONS = 200
FOLDER = "dogs-0123456789"
BEST, LAST, METRICS, RUN = (
    f"{FOLDER}/{name}" for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.jsonl", "run.json")
)


def config_of(photos: Path, home: Path, **more: object) -> RunConfig:
    """A run whose best epochs are the first one, and then the fourth of five."""
    values = tiny(photos, home) | {"optimizer.learning_rate": 0.3, "optimizer.schedule": "constant", "seed": 1}
    return load_config(None, values | {"trainer.max_epochs": 5} | more)


@pytest.fixture
def job(photos: Path, tmp_path: Path) -> JobOnThisMachine:
    return JobOnThisMachine(tmp_path, photos, config_of(photos, tmp_path))


def check(job: JobOnThisMachine, s3: Files, expected: dict[str, Any], scratch: Path) -> None:
    """Finish a job from what S3 has, and compare all that a person gets of it."""
    attempt = job.run(s3)
    assert attempt.completed
    assert result_of(job, attempt) == expected
    assert attempt.trained == list(range(epochs_with_weights(s3, scratch) + 1, 6))


def test_part_of_the_files_is_enough(job: JobOnThisMachine, tmp_path: Path) -> None:
    whole = job.run({})
    expected = result_of(job, whole)
    losses = [values["val_loss"] for values in expected["epochs"].values()]
    assert losses.index(min(losses[:3])) == 0 and losses.index(min(losses)) == 3
    best, last = versions_of(whole, BEST), versions_of(whole, LAST)
    assert len(best) == 3 and len(last) == 6
    for state in (
        {LAST: last[5]},  # `best` is missing, and is not the last epoch
        {LAST: last[4]},  # `best` is missing, and is the last epoch
        {LAST: last[5], BEST: best[1]},  # `best` is older than the one of `last`
        {LAST: last[1], BEST: best[2]},  # `best` is newer than `last`
        {BEST: best[2]},
    ):
        check(job, state, expected, tmp_path)


@pytest.mark.slow
def test_every_subset_of_the_files_of_every_age(job: JobOnThisMachine, tmp_path: Path) -> None:
    whole = job.run({})
    expected = result_of(job, whole)
    versions = [versions_of(whole, name) for name in (BEST, LAST, METRICS, RUN)]
    versions[3] = [*versions[3][-1:], None]
    tried = 0
    for contents in itertools.product(*versions):
        check(job, dict(zip((BEST, LAST, METRICS, RUN), contents, strict=True)), expected, tmp_path)
        tried += 1
    assert tried >= 3 * 6 * 6 * 2


VARIANTS: tuple[dict[str, object], ...] = (
    {},
    {"trainer.checkpoint_minutes": 1e-9, "data.batch_size": 5},
    {"trainer.record": "light", "sweep.metric": "val_accuracy", "sweep.direction": "maximize"},
    {"model.trainable": "all", "optimizer.learning_rate": 0.03, "trainer.early_stopping_patience": 2},
)


@pytest.mark.slow
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_interruptions_cost_no_epoch_that_s3_has(variant: int, photos: Path, tmp_path: Path) -> None:
    """Each job is interrupted again and again, at a random change of a file, with a random part of its files in S3."""
    job = JobOnThisMachine(tmp_path, photos, config_of(photos, tmp_path, **VARIANTS[variant]))
    whole, random, interruptions, jobs = job.run({}), Random(variant), 0, 0
    expected, longest = result_of(job, whole), len(whole.states)
    while interruptions < INTERRUPTIONS / len(VARIANTS):
        s3: Files = {}
        jobs += 1
        while True:
            attempt = job.run(s3, interrupt_at=random.randint(1, longest))
            known = epochs_with_weights(s3, tmp_path)
            assert attempt.trained == list(range(known + 1, known + 1 + len(attempt.trained)))
            if attempt.completed:
                break
            interruptions += 1
            s3 = part_of(s3, attempt, random)
        assert result_of(job, attempt) == expected
    print(f"{interruptions} interruptions of {jobs} jobs")
