"""A rehearsal whose jobs and endpoints start at once, leave prepared results, and end when they were looked at often
enough: `python -m tests.campaign.service PREPARED --root DIR`.

PREPARED has `model/`, an export, and `data/`, what a job leaves beside it.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from lightning_modules import metrics
from sagemaker_launch.container.metric_lines import environment_line, facts_line, metric_line
from sagemaker_launch.rehearsal import server
from sagemaker_launch.rehearsal.__main__ import main
from sagemaker_launch.rehearsal.endpoints import hosting, rollout, runner
from sagemaker_launch.rehearsal.endpoints.serving_process import Reply, ServingProcess
from sagemaker_launch.rehearsal.jobs import tuning
from sagemaker_launch.rehearsal.jobs.training import RuleStatuses
from sagemaker_launch.rehearsal.machine import runner as job_runner
from sagemaker_launch.rehearsal.machine.container import Container
from sagemaker_launch.rehearsal.machine.image import Image
from sagemaker_launch.rehearsal.service import Service

LOOKS = 3
"""How often a job or an endpoint is described before it has ended, or is in service."""
POLL_SECONDS = 0.005
EPOCHS = 2
looks: Counter[str] = Counter()
"""How often each job and endpoint was described since it started."""


class PreparedContainer(Container):
    """Leaves prepared results."""

    prepared: Path
    _killed = False

    def start(self, first: Container | None = None) -> IO[bytes]:
        """Leave everything, and print the reports of a training."""
        looks[self.spec.job_name] = 0
        shutil.copytree(self.prepared / "model", self.ml / "model", dirs_exist_ok=True)
        shutil.copytree(self.prepared / "data", self.ml / "output" / "data", dirs_exist_ok=True)
        self._process = object()  # type: ignore[assignment]
        return io.BytesIO("".join(f"{line}\n" for line in report()).encode())

    def exit_code(self) -> int | None:
        """0 once it was looked at often enough."""
        return 0 if self._killed or looks[self.spec.job_name] >= LOOKS else None

    def wait(self, timeout: float) -> int | None:
        """Sleep, and return the exit code."""
        time.sleep(POLL_SECONDS)
        return self.exit_code()

    def terminate(self) -> None:
        """End."""
        self._killed = True

    kill = terminate


class PreparedServing(ServingProcess):
    """Answers every photo with the golden scores of its model."""

    alive = False

    def start(self) -> None:
        """Begin to be looked at."""
        looks[self._spec.endpoint] = 0
        self.alive = True

    @property
    def running(self) -> bool:
        """Whether it was started and not ended."""
        return self.alive

    def wait_until_healthy(self, timeout_seconds: float, give_up: Callable[[], bool]) -> None:
        """Wait until it was looked at often enough."""
        while looks[self._spec.endpoint] < LOOKS and not give_up():
            time.sleep(POLL_SECONDS)

    def ask(self, body: bytes, headers: Mapping[str, str], timeout_seconds: float) -> Reply:
        """The golden scores, or the golden class."""
        golden = json.loads((self._tree / "ml" / "model" / "golden" / "scores.json").read_text())
        named = any(name.lower() == "x-amzn-sagemaker-custom-attributes" for name in headers)
        best = {"predictions": [{"classes": [{"name": golden["class_name"], "score": 1.0}]}]}
        answer = json.dumps(best if named else [golden["logits"]]).encode()
        return Reply(200, {"Content-Type": "application/json"}, answer)

    def end(self) -> None:
        """End."""
        self.alive = False


def report() -> list[str]:
    """What a training prints for `sync`."""
    lines = ["Invoking script", environment_line({"package.torch": "2"}), facts_line({"data.fingerprint": "photos"})]
    best = dict.fromkeys(metrics.SUMMARY, 0.5)
    epoch = {metrics.TRAIN_LOSS: 0.6, metrics.VAL_LOSS: 0.5, metrics.VAL_ACCURACY: 0.5, **best}
    lines += [metric_line("metrics", number, epoch) for number in range(1, EPOCHS + 1)]
    return [*lines, metric_line("outcome", EPOCHS, {**best, metrics.TEST_LOSS: 0.5})]


def counted(answer: Callable[[Any, Mapping[str, Any]], Any], names: Callable[[Any, Any], list[str]]) -> Any:
    """An operation that counts what it describes."""

    def counting(service: Any, request: Mapping[str, Any]) -> Any:
        found = answer(service, request)
        looks.update(names(request, found))
        return found

    return counting


def prepared_image(folder: Path, *_: object) -> Image:
    """An image without packages: nothing runs in it."""
    image = Image((folder / "image").resolve())
    (image.root / "lib" / "python3" / "site-packages").mkdir(parents=True, exist_ok=True)
    return image


def found_nothing(rules: RuleStatuses, *_: object, **__: object) -> None:
    """Stands for the evaluation of Debugger's rules, which needs an environment of its own."""
    for rule in rules:
        rule.conclude("NoIssuesFound", "")


def install(prepared: Path) -> None:
    """Replace what runs, in this process."""
    PreparedContainer.prepared = prepared
    job_runner.Container = PreparedContainer
    hosting.ServingProcess = PreparedServing
    server.build_training_image = prepared_image  # type: ignore[assignment]
    job_runner.judge = found_nothing
    Service.describe_training_job = counted(Service.describe_training_job, lambda asked, _: [asked["TrainingJobName"]])
    Service.list_training_jobs_for_hyper_parameter_tuning_job = counted(
        Service.list_training_jobs_for_hyper_parameter_tuning_job,
        lambda _, found: [summary["TrainingJobName"] for summary in found["TrainingJobSummaries"]],
    )
    hosting.Hosting.describe_endpoint = counted(
        hosting.Hosting.describe_endpoint, lambda asked, _: [asked["EndpointName"]]
    )
    for module in (tuning, runner, job_runner):
        module.POLL_SECONDS = POLL_SECONDS
    rollout.ALARM_SECONDS = POLL_SECONDS


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    sys.exit(main())
