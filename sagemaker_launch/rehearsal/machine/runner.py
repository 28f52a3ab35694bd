"""Runs one training job, from its input data to its results, in its own thread."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from sagemaker_launch.aws.combinations import DEFAULT_RUNTIME_SECONDS
from sagemaker_launch.aws.logs import LOG_GROUP
from sagemaker_launch.debugger.environment import run_rules
from sagemaker_launch.rehearsal.jobs.debugger import END_OF_JOB, judge
from sagemaker_launch.rehearsal.jobs.log import LogStream, OutputReader
from sagemaker_launch.rehearsal.jobs.training import TrainingJob
from sagemaker_launch.rehearsal.keys import Keys
from sagemaker_launch.rehearsal.machine.container import (
    OPT_ML,
    Container,
    ContainerSpec,
    command_of,
    environment_folders,
)
from sagemaker_launch.rehearsal.machine.image import Image
from sagemaker_launch.rehearsal.machine.image_root import ImageRoot
from sagemaker_launch.rehearsal.machine.namespaces import Namespaces
from sagemaker_launch.rehearsal.machine.objects import DataError, FolderSync, Objects, Uri
from sagemaker_launch.rehearse import TOOLKITS

Ending = Literal["exited", "stopped", "runtime", "wait", "interrupted", "shutdown"]
POLL_SECONDS = 0.1
MAX_REASON_CHARACTERS = 1024
"""Longest FailureReason (shape `FailureReason` of the API)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the rehearsal for what AWS decides, or leaves to chance."""

    root: Path
    """Folder of everything that the server keeps."""
    account: str = "123456789012"
    """AWS account that all calls belong to."""
    grace_seconds: float = 120.0
    """Time between SIGTERM and SIGKILL (AWS documentation of StopTrainingJob, 2025: 120 seconds)."""
    checkpoint_seconds: float = 2.0
    """Time between two uploads of checkpoints while a job runs."""
    log_seconds: float = 1.0
    """Time between two batches of log lines."""
    restart_seconds: float = 1.0
    """Time until spot capacity is back after an interruption."""
    spot_interrupt_after: float | None = None
    """Interrupt every spot job once, after this time of training."""
    max_parallel_jobs: int = 20
    """Instances that training jobs may occupy at once (AWS default quota for all training jobs, 2025)."""
    max_endpoint_instances: int = 20
    """Instances that endpoints may occupy at once."""
    quotas: Mapping[str, int] = field(default_factory=dict)
    """Instances by type that training jobs, and that endpoints, may occupy at once."""
    health_check_seconds: float = 60.0
    """A container of an endpoint has this time to answer /ping, and less if its endpoint config says so."""
    rollout_speed: float = 600.0
    """How many times faster than asked for traffic is shifted: at 600 a wait of ten minutes takes a second."""
    toolkit: str = TOOLKITS[0]
    """Version of AWS's toolkit in the image of jobs."""
    python: Path | None = None
    """Interpreter of jobs; None takes one of the version that AWS's image has, if this machine has one."""
    inference_images: Path | None = None
    """Folder in which AWS's inference container is built; None refuses its image."""
    serving_root: ImageRoot | None = None
    """This project's serving image, unpacked; None serves from the rehearsal's own environment."""
    without_gpu: bool = False
    """Let jobs and endpoints of GPU instances use the CPU. No request can set it."""
    debugger: bool = True
    """Whether the account has SageMaker Debugger."""
    keep_trees: bool = False
    """Leave the folders of ended containers for inspection."""


@dataclass
class Machine:
    """What jobs run on and with."""

    settings: Settings
    image: Image
    namespaces: Namespaces | None
    objects: Objects
    keys: Keys
    """A process of a job or an endpoint gets the pair of its role, and no other."""
    url: str = ""
    """Of the server, once it has a port."""
    shutdown: threading.Event = field(default_factory=threading.Event)
    """Set when the server stops: jobs end at once."""
    links: Path | None = None
    """Folder of short links to the folders of containers, where these have no /opt of their own."""

    def short(self, folder: Path) -> Path:
        """A path of a new folder that AWS's toolkit can use: it splits commands at spaces.

        It is short, as the path of a Unix socket has at most 107 bytes.
        """
        if self.links is None:
            return folder
        folder.mkdir(parents=True)
        link = self.links / uuid.uuid4().hex[:8]
        link.symlink_to(folder)
        return link


class JobRunner(threading.Thread):
    """Runs one training job."""

    def __init__(self, job: TrainingJob, region: str, machine: Machine) -> None:
        super().__init__(name=f"job {job.name}")
        self._job, self._region, self._machine = job, region, machine
        self._settings = machine.settings
        self._folder = self._settings.root / "jobs" / region / job.name
        self._created = time.monotonic()
        self._trained = 0.0
        self._interrupted = False
        self._codes: list[int | None] = []
        """Exit codes of the containers when the first of them failed, or all had ended."""
        self._readers: list[OutputReader] = []

    def run(self) -> None:
        """Run the job to its end."""
        job, attempts = self._job, int(self._job.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0))
        while not job.finished.is_set():
            try:
                self._run()
            except DataError as error:
                job.finish("Failed", "Failed", str(error)[:MAX_REASON_CHARACTERS])
            except Exception as error:
                # A bug of the rehearsal is reported as AWS's internal error, the only kind that AWS retries.
                log.exception("job %s: internal error", job.name)
                if attempts > 0 and not job.stop_requested.is_set():
                    attempts -= 1
                    job.enter("Restarting")
                    continue
                job.finish(
                    "Failed",
                    "Failed",
                    f"InternalServerError: We encountered an internal error. Please try again. ({error!r:.500}; the "
                    f"traceback is in {self._settings.root / 'server.log'})",
                )
        self._judge()
        log.info("job %s: %s%s", job.name, job.status, f" ({job.failure_reason})" if job.failure_reason else "")

    def _run(self) -> None:
        job = self._job
        ending: Ending = "interrupted"
        while ending == "interrupted":
            if job.secondary_status != "Starting":
                job.enter("Starting")
            with self._containers() as containers:
                ending = self._attempt(containers)
                if ending == "interrupted":
                    log.info("job %s: interrupted, it is restarted", job.name)
                    job.enter("Interrupted")
                else:
                    self._conclude(ending, containers)
                    return
            ending = self._wait_for_capacity() or ending
        self._finish(ending)

    def _wait_for_capacity(self) -> Ending | None:
        """Wait until a spot instance is there again; return what ended the job meanwhile."""
        until = time.monotonic() + self._settings.restart_seconds
        while time.monotonic() < until:
            if (ending := self._reason_to_stop()) is not None:
                return ending
            time.sleep(POLL_SECONDS)
        return None

    @contextlib.contextmanager
    def _containers(self) -> Iterator[list[Container]]:
        """The containers of one attempt, gone afterwards."""
        attempt = self._machine.short(self._folder / str(time.time_ns()))
        hosts = {host: f"127.0.0.{host.rpartition('-')[2]}" for host in host_order(self._job.name, self._job.instances)}
        machine = self._machine
        keep = [self._settings.root, *environment_folders(machine.image)]
        containers = [
            Container(attempt / host, self._spec(host, hosts), machine.image, machine.namespaces, keep)
            for host in hosts
        ]
        try:
            yield containers
        finally:
            for container in containers:
                container.kill()
                if not self._settings.keep_trees:
                    container.remove()

    def _spec(self, host: str, hosts: dict[str, str]) -> ContainerSpec:
        request = self._job.request
        algorithm = request["AlgorithmSpecification"]
        mode = algorithm["TrainingInputMode"]
        channels = {
            channel["ChannelName"]: {
                **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
                "TrainingInputMode": channel.get("InputMode", mode),
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            }
            for channel in request.get("InputDataConfig", ())
        }
        checkpoints = request.get("CheckpointConfig")
        return ContainerSpec(
            job_name=self._job.name,
            job_arn=self._job.arn,
            region=self._region,
            command=command_of(algorithm),
            hyperparameters=request.get("HyperParameters", {}),
            environment=request.get("Environment", {}),
            channels=channels,
            instance_type=request["ResourceConfig"]["InstanceType"],
            hosts=hosts,
            host=host,
            network_isolation=bool(request.get("EnableNetworkIsolation")),
            debug_hook=request.get("DebugHookConfig"),
            checkpoints=Path(checkpoints.get("LocalPath", OPT_ML / "checkpoints")) if checkpoints else None,
            endpoint_url=self._machine.url,
            keys=self._machine.keys.of(request["RoleArn"]),
            may_lack_gpu=self._settings.without_gpu,
        )

    def _attempt(self, containers: Sequence[Container]) -> Ending:
        """Run the containers to their end, or until they are stopped."""
        job = self._job
        _check_names(job.request.get("HyperParameters", {}))
        job.started = job.started or job.modified
        job.enter("Downloading")
        began = time.monotonic()
        try:
            for number, container in enumerate(containers):
                self._download(container, (number, len(containers)))
            if (ending := self._reason_to_stop()) is not None:
                return ending
            syncs = [*self._checkpoint_syncs(containers), *self._tensor_syncs(containers)]
            streams = [self._log_stream(each.spec.host) for each in containers]
            first = containers[0]
            outputs = [first.start(), *(container.start(first) for container in containers[1:])]
            self._readers = readers = [
                OutputReader(output, job.metrics, stream, self._settings.log_seconds)
                for output, stream in zip(outputs, streams, strict=True)
            ]
            job.enter("Training")
            ending = self._watch(containers, readers, syncs)
            for container in containers:
                container.kill()
            for reader in readers:
                reader.join()
            for sync in syncs:
                sync.sync(whole=ending != "interrupted")
            return ending
        finally:
            job.training_seconds += time.monotonic() - began

    def _log_stream(self, host: str) -> LogStream:
        name = f"{self._job.name}/{host}-{time.time_ns() // 1_000_000}"
        return LogStream(self._settings.account, self._region, LOG_GROUP, name)

    def _download(self, container: Container, share: tuple[int, int]) -> None:
        request = self._job.request
        for channel in request.get("InputDataConfig", ()):
            name, source = channel["ChannelName"], channel["DataSource"]["S3DataSource"]
            self._objects.fill_channel(
                source, container.channel(name), request["RoleArn"], share, copy=container.is_writable(name)
            )

    def _checkpoint_syncs(self, containers: Sequence[Container]) -> list[FolderSync]:
        """Restore the checkpoints, and prepare to upload what is new."""
        if "CheckpointConfig" not in self._job.request:
            return []
        uri = Uri.parse(self._job.request["CheckpointConfig"]["S3Uri"])
        for container in containers:
            restored = self._objects.restore(uri, container.checkpoints)
            if restored:
                log.info("job %s: restored %d checkpoint files from %s", self._job.name, restored, uri)
        return [FolderSync(self._objects, container.checkpoints, uri, marks=True) for container in containers]

    def _tensor_syncs(self, containers: Sequence[Container]) -> list[FolderSync]:
        """Prepare to upload what Debugger saves."""
        if "DebugHookConfig" not in self._job.request:
            return []
        objects, uri = self._objects, self._tensors
        # smdebug writes beside a file's place and moves it there. At its end it deletes its file that says who writes.
        return [
            FolderSync(objects, container.tensors, uri, unfinished=".tmp", deletes=False) for container in containers
        ]

    @property
    def _objects(self) -> Objects:
        """S3 as the job's role may use it."""
        return self._machine.objects.acting_as(self._job.request["RoleArn"])

    @property
    def _tensors(self) -> Uri:
        return Uri.parse(self._job.request["DebugHookConfig"]["S3OutputPath"]) / self._job.name / "debug-output"

    def _judge(self) -> None:
        """Evaluate Debugger's rules, of which AWS tells when the job has ended already."""
        job, machine = self._job, self._machine
        watched = "DebugHookConfig" in job.request
        if not watched and not list(job.rules):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="tensors-", dir=self._folder) as folder:
                if watched:
                    self._objects.restore(self._tensors, Path(folder))
                    self._objects.put(self._tensors / END_OF_JOB, b"")
                cache = machine.image.root.parent
                judge(job.rules, job.request, Path(folder), partial(run_rules, cache), end_now=machine.shutdown.is_set)
        except Exception as error:
            log.exception("job %s: rules", job.name)
            for rule in job.rules:
                rule.conclude("Error", f"InternalServerError: {error!r}")

    def _watch(
        self, containers: Sequence[Container], readers: Sequence[OutputReader], syncs: Sequence[FolderSync]
    ) -> Ending:
        """Watch running containers until they end or are stopped, with their grace period."""
        began = time.monotonic()
        next_sync = began + self._settings.checkpoint_seconds
        while True:
            self._codes = codes = [container.exit_code() for container in containers]
            # A host that fails takes the cluster down; otherwise the job lasts as long as the last host.
            if all(code is not None for code in codes) or any(codes):
                return "exited"
            for reader in readers:
                if reader.error is not None:
                    raise reader.error
            trained = self._trained + time.monotonic() - began
            ending = self._reason_to_stop(trained) or self._interruption(trained)
            if ending is not None:
                self._trained = trained
                kill_at_once = ending == "shutdown" or self._job.interruption == "SIGKILL"
                self._job.interruption = None
                if not kill_at_once:
                    self._end_with_grace(containers, syncs)
                return ending
            if time.monotonic() >= next_sync:
                for sync in syncs:
                    sync.sync(whole=False)
                next_sync = time.monotonic() + self._settings.checkpoint_seconds
            containers[0].wait(POLL_SECONDS)

    def _end_with_grace(self, containers: Sequence[Container], syncs: Sequence[FolderSync]) -> None:
        for container in containers:
            container.terminate()
        until = time.monotonic() + self._settings.grace_seconds
        for container in containers:
            while container.wait(POLL_SECONDS) is None and time.monotonic() < until:
                if self._machine.shutdown.is_set():
                    return
                for sync in syncs:
                    sync.sync(whole=False)

    def _reason_to_stop(self, trained: float = 0.0) -> Ending | None:
        condition = self._job.request["StoppingCondition"]
        if self._machine.shutdown.is_set():
            return "shutdown"
        if self._job.stop_requested.is_set():
            return "stopped"
        if time.monotonic() - self._created > condition.get("MaxWaitTimeInSeconds", math.inf):
            return "wait"
        if trained > condition.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_SECONDS):
            return "runtime"
        return None

    def _interruption(self, trained: float) -> Ending | None:
        job, after = self._job, self._settings.spot_interrupt_after
        if job.spot and after is not None and trained >= after and not self._interrupted:
            self._interrupted = True
            job.interruption = "SIGTERM"
        return None if job.interruption is None else "interrupted"

    def _conclude(self, ending: Ending, containers: Sequence[Container]) -> None:
        """Upload the results and end the job."""
        job = self._job
        if ending == "exited" and any(self._codes):
            reason = self._failure_reason(containers)
            job.enter("Uploading")  # so do logs of failed jobs (github.com/huggingface/notebooks/issues/136, 2022)
            self._upload_output(containers)
            job.finish("Failed", "Failed", reason)
            return
        # A job that was stopped while it downloaded has nothing to upload.
        if ending != "shutdown" and containers[0].started:
            if ending == "exited":
                job.enter("Uploading")
            self._upload_model(containers)
            self._upload_output(containers)
        self._finish(ending)

    def _failure_reason(self, containers: Sequence[Container]) -> str:
        """What the job wrote to output/failure, else the last lines of the log of the container that failed."""
        failed, code = next((number, code) for number, code in enumerate(self._codes) if code)
        start, end = "AlgorithmError: ", f", exit code: {code}"
        room = MAX_REASON_CHARACTERS - len(start) - len(end)
        written = next((text for container in containers if (text := container.failure().strip())), "")
        reason = written or self._readers[failed].last_lines(room) or "the container printed nothing"
        return f"{start}{reason[:room]}{end}"

    def _finish(self, ending: Ending) -> None:
        if ending == "exited":
            self._job.finish("Completed", "Completed")
        elif ending == "runtime":
            self._job.finish("Stopped", "MaxRuntimeExceeded")
        elif ending == "wait":
            self._job.finish("Stopped", "MaxWaitTimeExceeded")
        else:
            self._job.finish("Stopped", "Stopped")

    def _upload_model(self, containers: Sequence[Container]) -> None:
        # Every host may write a model; the first that did counts here, where AWS unites the folders.
        filled = [folder for container in containers if any((folder := container.ml / "model").iterdir())]
        uri = self._output / "model.tar.gz"
        self._objects.put_archive(uri, filled[0] if filled else containers[0].ml / "model")
        self._job.artifacts = str(uri)

    def _upload_output(self, containers: Sequence[Container]) -> None:
        for container in containers:
            folder = container.ml / "output" / "data"
            if any(folder.iterdir()):
                self._objects.put_archive(self._output / "output.tar.gz", folder)

    @property
    def _output(self) -> Uri:
        return Uri.parse(self._job.request["OutputDataConfig"]["S3OutputPath"]) / self._job.name / "output"


def host_order(job: str, count: int) -> list[str]:
    """The hosts of a job as resourceconfig.json lists them; the first one is the master to AWS's toolkit.

    AWS does not promise an order, so several hosts never begin with `algo-1`. A job has the same order each time.
    """
    hosts = [f"algo-{number}" for number in range(1, count + 1)]
    mixed = random.Random(job)
    while count > 1 and hosts[0] == "algo-1":
        mixed.shuffle(hosts)
    return hosts


def _check_names(hyperparameters: Mapping[str, str]) -> None:
    """Break the start over a dot in a name, as the container's start-up script does on AWS.

    Raises:
        DataError: with what the shell says.
    """
    # The API takes such names, and so does the toolkit when it is started directly, as here.
    for name in hyperparameters:
        if "." in name:
            raise DataError(f"AlgorithmError: export: `SM_HP_{name.upper()}': not a valid identifier, exit code: 1")
