"""Settings of endpoints, as `--cloud.endpoint.field value` or in a preset."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from experiments.config import require
from experiments.fields import used_by

Precision = Literal["float32", "bf16", "int8"]
"""The same as `openvino_cpu.Precision`, which imports torch."""
VARIANT = "AllTraffic"
"""Name of the one production variant; a blue/green update needs the old and the new one to have the same."""
ROLE_ARN = r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+"
"""A role, with the characters that IAM allows: `*` in a printed policy would name all roles."""


@dataclass(frozen=True)
class EndpointSettings:
    """An endpoint. Its network, tags, key and bucket are those of the jobs."""

    kind: Literal["realtime", "serverless", "async"] = "realtime"
    """Running instances (realtime), instances that start on a request (serverless), or a queue in S3 (async)."""
    image: Literal["own", "aws", "torchserve"] = "own"
    """Our serving image, AWS's maintained one (Ray Serve), or AWS's last one with TorchServe (PyTorch 2.6)."""
    image_uri: str | None = None
    """Serving image in ECR; by default what `python -m sagemaker_launch image` pushes, or AWS's."""
    precision: Precision = used_by("float32", "cloud deploy", "cloud serve")
    """Precision of our server: float32, bf16 on a GPU, or int8 on a CPU, which is two to three times as fast. int8 is
    calibrated on training photos, and float32 is served instead if validation photos show it less accurate."""
    instance_type: str = used_by("ml.c5.xlarge", "cloud deploy", "cloud image", shape="ProductionVariantInstanceType")
    """Instance type of a realtime or async endpoint."""
    inference_ami: str | None = used_by(None, shape="ProductionVariantInferenceAmiVersion")
    """Machine image of GPU instances, which has the NVIDIA driver; by default the one that fits the image's CUDA."""
    min_instances: int = 1
    """Fewest instances; an async endpoint may have 0 while it is idle."""
    max_instances: int = 1
    """Most instances; more than min_instances lets AWS scale between the two."""
    scale_target: float | None = None
    """Target of scaling: requests per instance and minute, by default 300; async: requests that wait, by default 5."""
    memory_mb: int = 3072
    """Memory of a serverless endpoint, which decides its share of processors too."""
    max_concurrency: int = used_by(2, shape="ServerlessMaxConcurrency")
    """Concurrent requests of a serverless endpoint; used to compute its worst-case cost."""
    startup_timeout_seconds: int = used_by(600, shape="ProductionVariantContainerStartupHealthCheckTimeoutInSeconds")
    """Time limit for an instance to load the model."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the server, such as SERVING_MAX_BATCH; others can read them, so no secrets."""
    data_capture_percent: int = used_by(0, shape="SamplingPercentage")
    """Share of requests and answers that AWS saves in S3; photos may be private, so none by default."""
    rollout: Literal["canary", "linear", "all_at_once"] = "canary"
    """How an update moves traffic to the new instances: a part first (canary), part by part (linear), or at once."""
    rollout_percent: int = 10
    """The first part of a canary (at most 50), or each part of a linear rollout (10..50)."""
    rollout_wait_seconds: int = used_by(300, shape="WaitIntervalInSeconds")
    """How long each part, and at the end the whole, is watched before the update continues."""
    max_latency_ms: float | None = None
    """An update is rolled back when the 99th percentile of the model's latency is above this."""
    alarms: list[str] = field(default_factory=list)
    """Further CloudWatch alarms that roll an update back."""
    schedule_role_arn: str | None = used_by(None, "cloud deploy", "cloud policy", "cloud rehearse")
    """Role by which EventBridge deletes an expired endpoint; without it only `delete --expired` does."""
    owner: str | None = None
    """Owner of the endpoint; by default the user name on this machine."""
    budget_usd_per_hour: float | None = None
    """Limit of the worst-case cost per hour; required before anything is deployed."""

    def __post_init__(self) -> None:
        """Refuse values that no endpoint can use."""

        def check(condition: bool, name: str, rule: str) -> None:
            require(condition, f"cloud.endpoint.{name}", rule, getattr(self, name))

        check(self.instance_type.startswith("ml."), "instance_type", "begin with ml.")
        check(
            self.precision == "float32" or self.image == "own",
            "precision",
            f"be float32 with cloud.endpoint.image {self.image}",
        )
        check(
            "SERVING_PRECISION" not in self.environment,
            "environment",
            "leave SERVING_PRECISION to cloud.endpoint.precision",
        )
        ours = any(name.startswith("SERVING_") for name in self.environment)
        check(
            self.image == "own" or not ours,
            "environment",
            f"have no SERVING_ variables with cloud.endpoint.image {self.image}, whose server does not read them",
        )
        fewest = 0 if self.kind == "async" else 1
        check(self.min_instances >= fewest, "min_instances", f"be >= {fewest} for kind {self.kind}")
        most = max(1, self.min_instances)
        check(self.max_instances >= most, "max_instances", f"be >= {most}, the machines that it starts with")
        # Ray keeps objects in shared memory, which a serverless container lacks; AWS documents instances only.
        check(self.kind != "serverless" or self.image != "aws", "image", "be own or torchserve for kind serverless")
        check(
            self.kind != "serverless" or self.max_instances == 1,
            "max_instances",
            "be 1 for kind serverless (set max_concurrency)",
        )
        check(self.scale_target is None or self.scale_target > 0, "scale_target", "be > 0")
        check(not self.data_capture_percent or self.kind == "realtime", "data_capture_percent", "be 0 unless realtime")
        low = 10 if self.rollout == "linear" else 1
        check(low <= self.rollout_percent <= 50, "rollout_percent", f"be {low}..50 for {self.rollout}")
        check(self.max_latency_ms is None or self.max_latency_ms > 0, "max_latency_ms", "be > 0")
        check(len(self.alarms) <= 8, "alarms", "be at most 8")
        role = self.schedule_role_arn
        check(
            role is None or re.fullmatch(ROLE_ARN, role) is not None,
            "schedule_role_arn",
            "look like arn:aws:iam::123456789012:role/NAME",
        )
        check(self.budget_usd_per_hour is None or self.budget_usd_per_hour > 0, "budget_usd_per_hour", "be > 0")

    @property
    def has_instances(self) -> bool:
        """Whether it runs on instances of the account; a serverless endpoint does not."""
        return self.kind != "serverless"

    @property
    def scales(self) -> bool:
        """Whether AWS changes the number of instances."""
        return self.max_instances > self.min_instances

    @property
    def update_timeout_seconds(self) -> int:
        """Time after which AWS rolls an update back."""
        return min(28_800, 3600 + 10 * self.rollout_wait_seconds)

    @property
    def first_instances(self) -> int:
        """Number of instances at the start."""
        return max(1, self.min_instances)
