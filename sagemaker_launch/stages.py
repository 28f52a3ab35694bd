"""The whole path by the commands that a person would type: search, train the best, deploy, ask, update, delete."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.console import duration, say

COMMANDS = ("tune", "train", "sync", "cost", "deploy", "query", "status", "delete")
"""Commands that the stages run."""
STAGES = 9


@dataclass(frozen=True)
class Stage:
    """One command that was run."""

    label: str
    passed: bool
    seconds: float


@dataclass
class Stages:
    """Runs the stages; each needs those before it."""

    environment: Mapping[str, str]
    """The whole environment of the commands."""
    arguments_of: Callable[[str], Sequence[str]]
    """Presets and fields of a command, as on the command line, without passwords."""
    endpoint: str
    done: list[Stage] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    """Names of the jobs that were started."""
    has_deployed: bool = False
    """Whether the endpoint may exist."""

    @property
    def passed(self) -> bool:
        """Whether every stage went well."""
        return len(self.done) == STAGES and all(stage.passed for stage in self.done)

    def run(self, output_dir: Path, *lease: str) -> None:
        """Run all stages, or those before the first that fails; an endpoint is deleted in any case.

        Args:
            output_dir: of the commands.
            lease: further words of the first `deploy`.
        """
        tuned = self._job("tune")
        trained = tuned and self._job("train", "--best-of", tuned)
        if not (trained and self._stage("sync", "sync", "--models") and self._stage("cost", "cost")):
            return
        export = output_dir / "cloud" / trained / "export"
        self.has_deployed = True
        if self._stage("deploy", "deploy", self.endpoint, "--best-of", tuned, *lease):
            self._stage("query", "query", self.endpoint, str(export / "golden" / "image.jpg"))
            self._stage("update", "deploy", self.endpoint, "--model", str(export))
            self._stage("status", "status")
        self.has_deployed = not self._stage("delete", "delete", self.endpoint)

    def verdicts(self) -> str:
        """One line for each stage."""
        lines = [
            f"{stage.label:6} {'passed' if stage.passed else 'FAILED'} ({duration(stage.seconds)})"
            for stage in self.done
        ]
        return "\n".join(lines)

    def _job(self, command: str, *own: str) -> str:
        """The name of the job that a stage has started, if it succeeds."""
        return self.jobs[-1] if self._stage(command, command, *own) else ""

    def _stage(self, label: str, command: str, *own: str) -> bool:
        """Whether a stage succeeds."""
        say(f"--- {label}")
        started = time.monotonic()
        passed = self.succeeds(command, *own)
        self.done.append(Stage(label, passed, time.monotonic() - started))
        return passed

    def succeeds(self, command: str, *own: str) -> bool:
        """Run a command, and note the job that it names."""
        words = [sys.executable, "-m", "sagemaker_launch", command, *own, *self.arguments_of(command)]
        with subprocess.Popen(words, env=dict(self.environment), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    # At once, so that a job is known however this ends.
                    print(line, end="", flush=True)
                    if line.startswith("arn:") and "-job/" in line:
                        self.jobs.append(line.strip().rpartition("/")[2])
            except BaseException:
                process.terminate()  # it says what keeps running
                raise
        return process.returncode == 0
