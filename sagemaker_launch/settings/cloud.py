"""Settings of jobs in the cloud, in `conf/cloud/*.yaml` or as `--cloud.field value`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.config import load_settings, require
from experiments.fields import used_by, used_by_each
from sagemaker_launch.settings.debugger import DebuggerSettings
from sagemaker_launch.settings.endpoint import ROLE_ARN, EndpointSettings

KMS_KEY = r"[\w:/-]+"
"""Id, alias or ARN of a key (botocore's shape KmsKeyId, 2026), without `*`, which would name all keys."""
BUCKET = (
    r"(?!.*\.\.)(?!\d+\.\d+\.\d+\.\d+$)(?!xn--|sthree-|amzn-s3-demo-)"
    r"(?!.*(-s3alias|--ol-s3|\.mrap|--x-s3|--table-s3)$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
)
"""Names of general purpose buckets. Access points and directory buckets (S3 Express) have other names, and answer calls
of ours otherwise: a directory bucket lists by whole folders only.

Source: docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, read 2026-11.
"""
PROJECT_TAG = "project"
"""Tag by which this project finds its resources, and to which the IAM policy restricts it."""
EXPERIMENT_TAG = "tracking.experiment"
"""Tag of a job: the MLflow experiment that it was launched for."""
INSTANCE_TYPE_TAG, INSTANCE_COUNT_TAG = "cloud.instance_type", "cloud.instance_count"
"""Tags of a job: its machines, so that a list of jobs can be priced without a description of each."""
NAME_MARK = "-exp-"
"""Part of the names of all jobs, by which AWS leaves out most jobs of others when it lists jobs."""
TRAINS = ("cloud tune", "cloud train")
RUNS_MACHINES = (*TRAINS, "cloud deploy")
LISTS_JOBS = ("cloud sync", "cloud status", "cloud cost")
PRICES_JOBS = (*LISTS_JOBS, "cloud parity", "cloud debug-report")
GRANTS = ("cloud policy", "cloud rehearse")
OWNS = (*RUNS_MACHINES, *LISTS_JOBS, "cloud delete", "cloud image", *GRANTS)
ASKS_AWS = (*OWNS, "cloud parity", "cloud debug-report", "cloud stop", "cloud query")
"""Groups of commands that use the same settings."""
MAX_TUNING_JOB_NAME = 32
"""Characters of a tuning job's name (CreateHyperParameterTuningJob, read 2026-11); training jobs may have 63."""


@dataclass(frozen=True)
class CloudSettings:
    """Jobs on SageMaker. Credentials come from boto3's own chain and are never settings."""

    region: str | None = used_by(None, *ASKS_AWS, sent=False)
    """AWS region; by default the one that boto3 finds."""
    role_arn: str | None = used_by(None, *RUNS_MACHINES, "cloud image", *GRANTS)
    """IAM role that jobs run as."""
    bucket: str | None = used_by(None, *RUNS_MACHINES, "cloud query", *GRANTS, sent=False)
    """S3 bucket for photos, code, checkpoints and models."""
    prefix: str = used_by("experiments", *RUNS_MACHINES, "cloud query", *GRANTS, sent=False)
    """Everything in the bucket is kept under it."""
    project: str = used_by("local-first-experiments", *OWNS)
    """Value of the tag `project` of all resources; `status` lists by it."""
    image_uri: str | None = used_by(None, *TRAINS, sent=False)
    """Training image; by default AWS's newest PyTorch image, looked up once (needs the extra `cloud`)."""
    instance_type: str = used_by("ml.g5.xlarge", *TRAINS, shape="TrainingInstanceType")
    """Instance type of a job."""
    instance_count: int = used_by(1, *TRAINS)
    """Instances per job; more than one trains with DDP."""
    volume_size_gb: int = used_by(50, *TRAINS, shape="VolumeSizeInGB")
    """Disk of each instance; instance types with NVMe disks of their own use those instead."""
    max_runtime_seconds: int = used_by(3600, *TRAINS, shape="MaxRuntimeInSeconds")
    """A job that takes longer is stopped; used to compute the worst-case cost."""
    spot: bool = used_by(False, *TRAINS)
    """Train on spot instances; an interrupted job resumes from its checkpoint."""
    max_wait_seconds: int | None = used_by(None, *TRAINS)
    """With spot: time limit of a job, including the wait for an instance; default 2 x max_runtime_seconds."""
    checkpoints: bool = used_by(True, *TRAINS)
    """Keep checkpoints in S3 while a job runs."""
    retry_attempts: int = used_by(1, *TRAINS)
    """How often SageMaker restarts a job after an internal error; 0 never does."""
    keep_alive_seconds: int = used_by(0, "cloud train", shape="KeepAlivePeriodInSeconds")
    """Keep the instance warm, and billed, after a training job for the next one; not possible in tuning jobs."""
    input_mode: Literal["File", "FastFile"] = used_by("File", *TRAINS)
    """How photos reach the instance: copied before the job starts, or streamed while it reads."""
    subnets: list[str] = used_by_each(list, *RUNS_MACHINES, *GRANTS, shape="Subnets")
    """VPC subnets of the jobs, together with security_group_ids."""
    security_group_ids: list[str] = used_by_each(list, *RUNS_MACHINES, *GRANTS, shape="VpcSecurityGroupIds")
    """VPC security groups of the jobs, together with subnets."""
    volume_kms_key: str | None = used_by(None, *RUNS_MACHINES, *GRANTS)
    """KMS key of the instances' disks."""
    output_kms_key: str | None = used_by(None, *RUNS_MACHINES, "cloud query", *GRANTS)
    """KMS key of the objects in the bucket: of what is uploaded, and of what jobs and endpoints write."""
    network_isolation: bool = used_by(False, *RUNS_MACHINES)
    """Jobs have no network at all: packages and weights are uploaded with them."""
    encrypt_inter_container_traffic: bool = used_by(False, *TRAINS)
    """Encrypt the traffic between the instances of a job."""
    environment: dict[str, str] = used_by_each(dict, *TRAINS, shape="TrainingEnvironmentMap")
    """Environment variables of the jobs; everybody who may describe a job can read them, so no secrets."""
    tags: dict[str, str] = used_by_each(dict, *RUNS_MACHINES)
    """Further tags of all resources."""
    strategy: Literal["Bayesian", "Random", "Hyperband", "Grid"] = used_by("Bayesian", "cloud tune")
    """How a tuning job chooses the next point."""
    max_parallel_jobs: int = used_by(2, "cloud tune")
    """Training jobs of a tuning job that run at once."""
    early_stopping: bool = used_by(False, "cloud tune")
    """Let SageMaker stop bad training jobs of a tuning job (not with Hyperband, which does so itself)."""
    warm_start_from: list[str] = used_by_each(list, "cloud tune")
    """Finished tuning jobs, at most 5, whose results a new one begins with."""
    target_value: float | None = used_by(None, "cloud tune")
    """A tuning job ends when its objective gets this good."""
    max_jobs_without_improvement: int | None = used_by(None, "cloud tune", shape="MaxNumberOfTrainingJobsNotImproving")
    """A tuning job ends after this many training jobs in a row without a better objective (3 or more)."""
    budget_usd: float | None = used_by(None, *TRAINS, sent=False)
    """Limit of the worst-case cost of one command; required before anything is started."""
    price_per_hour: float | None = used_by(None, *RUNS_MACHINES, *PRICES_JOBS, sent=False)
    """Dollars per hour of one instance of this job or endpoint, in place of the price lists."""
    endpoint: EndpointSettings = used_by_each(EndpointSettings, "cloud deploy")
    """How models are served."""
    debugger: DebuggerSettings = used_by_each(DebuggerSettings, "cloud train")
    """What SageMaker Debugger watches in a training job."""

    def __post_init__(self) -> None:
        """Refuse values that no job can use."""

        def check(condition: bool, name: str, rule: str) -> None:
            require(condition, f"cloud.{name}", rule, getattr(self, name))

        arn = self.role_arn is None or re.fullmatch(ROLE_ARN, self.role_arn) is not None
        check(arn, "role_arn", "look like arn:aws:iam::123456789012:role/NAME")
        if self.bucket is not None:
            require_bucket_name("cloud.bucket", self.bucket)
        check(
            re.fullmatch(r"[\w.-]+(/[\w.-]+)*", self.prefix) is not None, "prefix", "be a key prefix such as team/dogs"
        )
        # A tag's value has at most 256 characters, but names of alarms begin with the project and have at most 255.
        check(re.fullmatch(r"[\w.:/=+@-]{1,128}", self.project) is not None, "project", "be usable as a tag's value")
        for name in ("volume_kms_key", "output_kms_key"):
            key = getattr(self, name)
            check(key is None or re.fullmatch(KMS_KEY, key) is not None, name, "be the id or the ARN of a KMS key")
        check(self.instance_type.startswith("ml."), "instance_type", "begin with ml.")
        check(self.instance_count >= 1, "instance_count", "be >= 1")
        check(
            not self.spot or self.checkpoints, "checkpoints", "be true with cloud.spot: an interruption would lose all"
        )
        check(self.max_wait_seconds is None or self.spot, "max_wait_seconds", "be left out without cloud.spot")
        check(
            self.max_wait_seconds is None or self.max_wait_seconds >= self.max_runtime_seconds,
            "max_wait_seconds",
            "be >= cloud.max_runtime_seconds",
        )
        check(0 <= self.retry_attempts <= 30, "retry_attempts", "be 0..30")
        check(self.keep_alive_seconds == 0 or not self.spot, "keep_alive_seconds", "be 0 with cloud.spot")
        check(bool(self.subnets) == bool(self.security_group_ids), "subnets", "come together with security_group_ids")
        check(PROJECT_TAG not in self.tags, "tags", f"leave {PROJECT_TAG!r} to cloud.project")
        check(EXPERIMENT_TAG not in self.tags, "tags", f"leave {EXPERIMENT_TAG!r} to the field of this name")
        check(1 <= self.max_parallel_jobs <= 100, "max_parallel_jobs", "be 1..100")
        check(
            not self.early_stopping or self.strategy != "Hyperband",
            "early_stopping",
            "be false with strategy Hyperband, which stops jobs itself",
        )
        check(len(self.warm_start_from) <= 5, "warm_start_from", "name at most 5 tuning jobs")
        check(
            not self.warm_start_from or self.strategy in ("Bayesian", "Random"),
            "warm_start_from",
            "be left out with strategy Hyperband or Grid",
        )
        check(self.budget_usd is None or self.budget_usd > 0, "budget_usd", "be > 0")
        check(self.price_per_hour is None or self.price_per_hour > 0, "price_per_hour", "be > 0")
        bare = self.endpoint.kind != "serverless" or not (self.subnets or self.network_isolation)
        check(bare, "endpoint", "not be serverless with subnets or network_isolation, which SageMaker can't give it")
        check(
            not (self.debugger.enabled and self.checkpoints and self.instance_count > 1),
            "checkpoints",
            "be false with cloud.debugger.enabled on several machines, which smdebug does not support together",
        )

    @property
    def uri(self) -> str:
        """Prefix of all objects in S3, without a slash at its end."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def partition(self) -> str:
        """AWS's partition of the account, such as aws or aws-cn, by the role."""
        assert self.role_arn is not None, "checked by require_for_jobs"
        return self.role_arn.split(":")[1]

    @property
    def account(self) -> str:
        """Number of the account, by the role."""
        assert self.role_arn is not None, "checked by require_for_jobs"
        return self.role_arn.split(":")[4]

    @property
    def longest_wait_seconds(self) -> int | None:
        """Time limit of a spot job including its wait; None for on-demand instances, which do not wait."""
        return (self.max_wait_seconds or 2 * self.max_runtime_seconds) if self.spot else None

    def require_for_jobs(self) -> None:
        """Refuse settings that no job can be started with.

        Raises:
            ValueError: naming what is missing.
        """
        for name, example in (("role_arn", "arn:aws:iam::123456789012:role/training"), ("bucket", "my-bucket")):
            require(getattr(self, name) is not None, f"cloud.{name}", f"be set (--cloud.{name} {example})", None)


def require_bucket_name(setting: str, name: str) -> None:
    """Refuse what is not the name of a general purpose bucket.

    Raises:
        UserError: naming the setting.
    """
    rule = "be the name of a general purpose bucket of S3, no access point and no directory bucket such as dogs--x-s3"
    require(re.fullmatch(BUCKET, name) is not None, setting, rule, name)


def load_cloud(preset: Path | None = None, overrides: Mapping[str, object] | None = None) -> CloudSettings:
    """Read cloud settings from a preset and apply overrides, as `load_config` does at home.

    Raises:
        UserError: if there is no such preset; for an unknown field or a value that its field refuses, naming both.
    """
    return load_settings(CloudSettings, preset, overrides or {}, option="--cloud", prefix="cloud.")
