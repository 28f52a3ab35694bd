"""What several end-to-end tests look at: jobs in a rehearsal of the service, run once for all of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud import Cloud, rehearsed


@pytest.fixture(scope="package")
def cloud(
    photos: Path, job_images: Path, mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    """A running rehearsal."""
    with rehearsed(tmp_path_factory.mktemp("cloud"), photos, job_images, mlflow_database) as found:
        yield found


@pytest.fixture(scope="package")
def flow(cloud: Cloud) -> Cloud:
    """Tune, train the best, synchronise."""
    said = io.StringIO()
    with cloud.in_reach(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        done = [cloud.run("tune")]
        best_of = cloud.sent("CreateHyperParameterTuningJob")["HyperParameterTuningJobName"]
        done.append(cloud.run("train", "--best-of", best_of, "--trainer.profile=true"))
        done.append(cloud.run("sync", "--models"))
    cloud.said = said.getvalue()
    assert done == [0, 0, 0], cloud.said
    return cloud
