"""The rehearsal as the launcher sees it: a service on 127.0.0.1 that is started, used like AWS, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from experiments.config import RunConfig
from experiments.errors import CommandError
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.stages import Stages

SETTINGS = Path("conf/cloud/rehearsal.yaml")
"""Settings of `rehearse` where no others are given: a role and a bucket that it makes itself."""
CONFIG = Path("conf/quick.yaml")
"""Config of `rehearse --all` where no other is given: it needs no photos and no download, and takes minutes."""
VARIABLES = 7
"""Lines in which the service prints its environment when it is ready, and last the administrator's key."""
ADMINISTRATOR = "REHEARSAL_ADMINISTRATOR_"
"""Beginning of the names of the administrator's variables."""
LAUNCHER_POLICY = "experiments-launcher"
TOOLKITS = ("5.1.1", "5.1.4")
"""Versions of AWS's sagemaker-training in rehearsed jobs: that of AWS's PyTorch 2.14 image, which gives each command to
a shell, and a later one, which does not."""
ENDPOINT = "rehearsed"


class RehearsalError(CommandError):
    """The service did not start, or a stage failed."""


@dataclass(frozen=True)
class Service:
    """A running stand-in for AWS."""

    environment: Mapping[str, str]
    """The variables by which every other command uses it, under the policy of the launcher."""
    administrator: Mapping[str, str]
    """The same variables with the key of the account's administrator, for other clients."""
    process: subprocess.Popen[str]

    def end(self) -> None:
        """Stop it and wait as long as its jobs take to end."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def run_rehearsal(
    settings: CloudSettings, root: Path, options: Sequence[str] = (), config: RunConfig | None = None
) -> Iterator[Service]:
    """Run the stand-in for AWS and end it.

    Args:
        settings: the policies of the account's user and roles are those that `policy` prints for them.
        root: where it keeps jobs, logs and the environment of jobs.
        options: of `python -m sagemaker_launch.rehearsal`.
        config: its photos may be in another bucket.

    Raises:
        RehearsalError: if it does not start.
    """
    running = start_service(settings, root, options, config=config)
    try:
        yield running
    finally:
        running.end()


def start_service(
    settings: CloudSettings,
    root: Path,
    options: Sequence[str] = (),
    stdin: int = subprocess.PIPE,
    config: RunConfig | None = None,
) -> Service:
    """Start the stand-in for AWS.

    Args:
        stdin: its standard input; it ends when that does, so by default when this process does.

    Raises:
        RehearsalError: if it does not start.
        UserError: if the settings lack a role or a bucket, which it makes.
    """
    settings.require_for_jobs()
    command = [sys.executable, "-m", "sagemaker_launch.rehearsal", "--root", str(root), "--until-eof"]
    command += ["--account", settings.account, *options]
    # However this process ends, the pipe to the service's standard input closes with it, and the service ends too. It
    # has a session of its own: a notebook's interrupt is about one cell and reaches all that the kernel has started.
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    running = Service({}, {}, process)
    try:
        # It says so once it is ready, and closes the pipe if it does not get there.
        said = [line.removeprefix("export ").rstrip("\n").split("=", 1) for line in islice(process.stdout, VARIABLES)]
        if len(said) < VARIABLES:
            raise RehearsalError(f"the rehearsal's service did not start: see {root / 'server.log'}")
        environment = dict(said)
        key = {name: environment.pop(name) for name in list(environment) if name.startswith(ADMINISTRATOR)}
        if settings.region is not None:
            environment |= {"AWS_DEFAULT_REGION": settings.region, "AWS_REGION": settings.region}
        administrator = environment | {name.removeprefix(ADMINISTRATOR): value for name, value in key.items()}
        set_up_account(settings, config, administrator)
    except BaseException:
        running.end()
        raise
    return Service(environment, administrator, process)


def rehearse_all(
    settings: CloudSettings,
    root: Path,
    arguments_of: Callable[[str], Sequence[str]],
    options: Sequence[str],
    secrets: Mapping[str, str],
    config: RunConfig | None = None,
) -> bool:
    """The whole path by the commands that a person would type: search, train the best, deploy, ask, update, delete.

    Args:
        root: a folder below `output_dir`.
        arguments_of: presets and fields of a command, as on the command line, without passwords.
        secrets: further environment of the commands, which has the passwords.

    Returns:
        Whether every stage went well.
    """
    with run_rehearsal(settings, root, options, config) as running:
        # No other variable of AWS, which may name other addresses, profiles and regions.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        stages = Stages({**kept, **running.environment, **secrets}, arguments_of, ENDPOINT)
        stages.run(root.parent)
    print(stages.verdicts())
    return stages.passed


def misleading_variables(environment: Mapping[str, str]) -> list[str]:
    """Names of variables of AWS in this process's environment that have another meaning than the rehearsal's."""
    return sorted(name for name in os.environ if name.startswith("AWS_") and name not in environment)


def set_up_account(settings: CloudSettings, config: RunConfig | None, environment: Mapping[str, str]) -> None:
    """What an administrator does first (docs/first-time-on-aws.md): a bucket, roles, and policies."""
    import boto3
    from botocore.config import Config

    from sagemaker_launch.account.policy import policies
    from sagemaker_launch.aws.sessions import ENDPOINT_VARIABLE, REHEARSAL_CONFIG, hermetic_session

    region = environment["AWS_REGION"]
    own = boto3.Session(
        environment["AWS_ACCESS_KEY_ID"],
        environment["AWS_SECRET_ACCESS_KEY"],
        region_name=region,
        botocore_session=hermetic_session(),
    )
    options = {"endpoint_url": environment[ENDPOINT_VARIABLE], "config": Config(**REHEARSAL_CONFIG)}
    elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3, iam = own.client("s3", **options), own.client("iam", **options)
    s3.create_bucket(Bucket=settings.bucket, **({} if region == "us-east-1" else elsewhere))
    printed = {name: json.dumps(policy) for name, policy in policies(settings, region, config).items()}
    roles = {"role": settings.role_arn, "schedule_role": settings.endpoint.schedule_role_arn}
    for name, role in roles.items():
        if role is not None:
            *path, role_name = role.partition(":role/")[2].split("/")
            with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):  # one role may be both
                iam.create_role(
                    RoleName=role_name,
                    Path="/".join(["", *path, ""]),
                    AssumeRolePolicyDocument=printed[f"{name}_trust"],
                )
            iam.put_role_policy(RoleName=role_name, PolicyName=name, PolicyDocument=printed[name])
    made = iam.create_policy(PolicyName=LAUNCHER_POLICY, PolicyDocument=printed["launcher"])
    iam.attach_user_policy(UserName="launcher", PolicyArn=made["Policy"]["Arn"])
