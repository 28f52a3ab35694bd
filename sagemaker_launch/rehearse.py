"""The rehearsal as the launcher sees it: a service on 127.0.0.1 that is started, used like AWS, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from experiments.console import duration, say
from experiments.errors import CommandError
from sagemaker_launch.settings.cloud import CloudSettings

VARIABLES = 5
"""Lines in which the service prints its environment when it is ready."""


ENDPOINT = "rehearsed"
STAGES = 9
"""What `rehearse --all` does."""
REHEARSED = ("tune", "train", "sync", "cost", "deploy", "query", "status", "delete")
"""The commands that it runs."""


class RehearsalError(CommandError):
    """The service did not start, or a stage failed."""


@dataclass(frozen=True)
class Service:
    """A running stand-in for AWS."""

    environment: Mapping[str, str]
    """The variables in which every other command uses it."""
    process: subprocess.Popen[str]

    def end(self) -> None:
        """Stop it and wait as long as its jobs take to end."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def run_rehearsal(settings: CloudSettings, root: Path, options: Sequence[str] = ()) -> Iterator[Service]:
    """Run the stand-in for AWS and end it.

    Args:
        root: where it keeps jobs, logs and the environment of jobs.
        options: of `python -m sagemaker_launch.rehearsal`.

    Raises:
        RehearsalError: if it does not start.
    """
    running = start_service(settings, root, options)
    try:
        yield running
    finally:
        running.end()


def start_service(
    settings: CloudSettings, root: Path, options: Sequence[str] = (), stdin: int = subprocess.PIPE
) -> Service:
    """Start the stand-in for AWS.

    Args:
        stdin: its standard input; it ends when that does, so by default when this process does.

    Raises:
        RehearsalError: if it does not start.
    """
    command = [sys.executable, "-m", "sagemaker_launch.rehearsal", "--root", str(root), "--until-eof", *options]
    # However this process ends, the pipe to the service's standard input closes with it, and the service ends too. It
    # has a session of its own: a notebook's interrupt is about one cell and reaches all that the kernel has started.
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    running = Service({}, process)
    try:
        # It says so once it is ready, and closes the pipe if it does not get there.
        said = [line.removeprefix("export ").rstrip("\n").split("=", 1) for line in islice(process.stdout, VARIABLES)]
        if len(said) < VARIABLES:
            raise RehearsalError(f"the rehearsal's service did not start: see {root / 'server.log'}")
        environment = dict(said)
        if settings.region is not None:
            environment |= {"AWS_DEFAULT_REGION": settings.region, "AWS_REGION": settings.region}
        _make_bucket(settings, environment)
    except BaseException:
        running.end()
        raise
    return Service(environment, process)


def rehearse_all(
    settings: CloudSettings,
    root: Path,
    arguments_of: Callable[[str], Sequence[str]],
    options: Sequence[str],
    secrets: Mapping[str, str],
) -> bool:
    """The whole path by the commands that a person would type: search, train the best, deploy, ask, update, delete.

    Args:
        root: a folder below `output_dir`.
        arguments_of: presets and fields of a command, as on the command line, without passwords.
        secrets: further environment of the commands, which has the passwords.

    Returns:
        Whether every stage went well.
    """
    done: list[tuple[str, bool, float]] = []
    with run_rehearsal(settings, root, options) as running:
        environment = {**running.environment, **secrets}

        def stage(label: str, command: str, *own: str) -> str:
            return _stage(done, label, [command, *own, *arguments_of(command)], environment)

        tuned = stage("tune", "tune").rpartition("/")[2]
        trained = tuned and stage("train", "train", "--best-of", tuned).rpartition("/")[2]
        if trained and stage("sync", "sync", "--models") and stage("cost", "cost"):
            export = root.parent / "cloud" / trained / "export"
            if stage("deploy", "deploy", ENDPOINT, "--best-of", tuned):
                stage("query", "query", ENDPOINT, str(export / "golden" / "image.jpg"))
                stage("update", "deploy", ENDPOINT, "--model", str(export))
                stage("status", "status")
            stage("delete", "delete", ENDPOINT)
    for name, well, seconds in done:
        print(f"{name:6} {'passed' if well else 'FAILED'} ({duration(seconds)})")
    return len(done) == STAGES and all(well for _, well, _ in done)


def _stage(
    done: list[tuple[str, bool, float]], label: str, command: Sequence[str], environment: Mapping[str, str]
) -> str:
    """Run one command; its last word on standard output, or nothing if it failed."""
    say(f"--- {label}")
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "sagemaker_launch", *command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(ran.stdout, end="", flush=True)
    done.append((label, ran.returncode == 0, time.monotonic() - started))
    words = ran.stdout.split()
    return words[-1] if ran.returncode == 0 and words else ""


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
