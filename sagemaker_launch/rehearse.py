"""The rehearsal as the launcher sees it: a service on 127.0.0.1 that is started, used like AWS, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from experiments.console import duration, say
from sagemaker_launch.settings import CloudSettings

VARIABLES = 5
"""Lines in which the service prints its environment when it is ready."""


class RehearsalError(RuntimeError):
    """The service did not start, or a stage went wrong."""


@dataclass(frozen=True)
class Service:
    """A running stand-in for AWS."""

    environment: Mapping[str, str]
    """The variables in which every other command uses it."""
    process: subprocess.Popen[str]


@contextmanager
def service(settings: CloudSettings, root: Path, options: Sequence[str] = ()) -> Iterator[Service]:
    """Run the stand-in for AWS and end it.

    Args:
        root: where it keeps jobs, logs and the environment of jobs.
        options: of `python -m sagemaker_launch.rehearsal`.

    Raises:
        RehearsalError: if it does not start.
    """
    command = [sys.executable, "-m", "sagemaker_launch.rehearsal", "--root", str(root), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        # It says so once it is ready, and closes the pipe if it does not get there.
        said = [line.removeprefix("export ").rstrip("\n").split("=", 1) for line in islice(process.stdout, VARIABLES)]
        if len(said) < VARIABLES:
            raise RehearsalError(f"the rehearsal's service did not start: see {root / 'server.log'}")
        environment = dict(said)
        if settings.region is not None:
            environment |= {"AWS_DEFAULT_REGION": settings.region, "AWS_REGION": settings.region}
        _make_bucket(settings, environment)
        yield Service(environment, process)
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


def rehearse_all(settings: CloudSettings, root: Path, arguments: Sequence[str], options: Sequence[str]) -> bool:
    """Search, train the best and bring all of it into MLflow, by the commands that a person would type.

    Args:
        arguments: config and settings, as on the command line.

    Returns:
        Whether every stage went well.
    """
    done: list[tuple[str, bool, float]] = []
    with service(settings, root, options) as running:
        environment = running.environment
        tuned = _stage(done, "tune", [*arguments], environment)
        if tuned:
            best = ["--best-of", tuned.rpartition("/")[2]]
            if _stage(done, "train", [*best, *arguments], environment):
                _stage(done, "sync", ["--models", *arguments], environment)
                _stage(done, "cost", [*arguments], environment)
    for name, well, seconds in done:
        print(f"{name:6} {'passed' if well else 'FAILED'} ({duration(seconds)})")
    return len(done) == 4 and all(well for _, well, _ in done)


def _stage(
    done: list[tuple[str, bool, float]], name: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> str:
    """Run one command; its last line of standard output, or nothing if it failed."""
    say(f"--- {name}")
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "sagemaker_launch", name, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(ran.stdout, end="", flush=True)
    done.append((name, ran.returncode == 0, time.monotonic() - started))
    lines = ran.stdout.split()
    return lines[-1] if ran.returncode == 0 and lines else ""


def _make_bucket(settings: CloudSettings, environment: Mapping[str, str]) -> None:
    import boto3

    region = environment["AWS_REGION"]
    s3 = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=region,
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=settings.bucket, **({} if region == "us-east-1" else elsewhere))
