"""Measures a few steady steps of a run: the time of each phase, and the trace of PyTorch's profiler.

    skip      until caches, autotuning and the threads that load data have settled
    time      Lightning tells where a step is (its profiler's actions); on a GPU each phase waits for the device
    trace     PyTorch's profiler with the Python stack, which makes steps slower: no phase is timed here

Before and after it, training runs with Lightning's own profiler that does nothing.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler
from torch.profiler import ProfilerActivity, profile, record_function

from lightning_modules.cores import usable_cores
from lightning_modules.files import part_path, remove, replaced_whole
from lightning_modules.insight.profile_page import page
from lightning_modules.insight.profile_trace import STEP, read_trace
from lightning_modules.insight.profile_verdict import PHASES, Profile, Settings, verdict

SKIPPED, TIMED, TRACED = 10, 32, 3
"""Steps of each kind. Threads deliver batches in bursts of as many as there are threads, so more are timed if there are
more threads."""
PHASE_OF_HOOK: Mapping[str, str] = {
    "train_dataloader_next": "data",
    "on_before_batch_transfer": "copy",
    "batch_to_device": "copy",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "optimiser",
    "optimizer_zero_grad": "optimiser",
}
"""Lightning's names (2.6) of the phases of a step. A phase includes what it calls, except callbacks."""


@dataclass
class StepTimes:
    """The durations of one step."""

    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Seconds by phase: together the whole step."""
    others: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of the hooks and callbacks that are part of `other`, by name."""
    cpu_seconds: float = 0.0


class StepClock(Profiler):
    """Replaces the trainer's profiler, and assigns each moment of a step to one phase.

    Args:
        wait: waits for the device, where it works on its own.
        annotate: also mark the phases in PyTorch's trace.
    """

    def __init__(self, *, wait: Callable[[], object], annotate: bool) -> None:
        super().__init__()
        self._wait, self._annotate = wait, annotate
        self._actions: list[tuple[str, str]] = []
        self._marks: list[AbstractContextManager[Any]] = []
        self._times, self._since, self._cpu_since = StepTimes(), 0.0, 0.0

    def begin(self) -> None:
        """Begin a step."""
        self._wait()
        self._times, self._since, self._cpu_since = StepTimes(), time.perf_counter(), time.process_time()
        self._mark(STEP)

    def end(self) -> StepTimes:
        """End the step."""
        self._charge(wait=True)
        self._times.cpu_seconds = time.process_time() - self._cpu_since
        self._unmark()
        return self._times

    def start(self, action_name: str) -> None:
        """Begin an action, which may be within another."""
        hook = action_name.rpartition(".")[2]
        if action_name.startswith("[Callback]"):
            phase = "other"
        else:
            phase = PHASE_OF_HOOK.get(hook, self._actions[-1][1] if self._actions else "other")
        self._charge(wait=hook in PHASE_OF_HOOK)
        self._actions.append((action_name, phase))
        if hook in PHASE_OF_HOOK:
            self._mark(phase)

    def stop(self, action_name: str) -> None:
        """End the action that began last; an action from before this clock is ignored."""
        if self._actions and self._actions[-1][0] == action_name:
            is_hook = action_name.rpartition(".")[2] in PHASE_OF_HOOK
            self._charge(wait=is_hook)
            self._actions.pop()
            if is_hook:
                self._unmark()

    def _charge(self, *, wait: bool) -> None:
        if wait:
            self._wait()
        now = time.perf_counter()
        action, phase = self._actions[-1] if self._actions else ("Lightning's loop", "other")
        self._times.phases[phase] += now - self._since
        if phase == "other":
            self._times.others[action] += now - self._since
        self._since = now

    def _mark(self, name: str) -> None:
        if self._annotate:
            self._marks.append(record_function(name))
            self._marks[-1].__enter__()

    def _unmark(self) -> None:
        if self._annotate:
            self._marks.pop().__exit__(None, None, None)


class StepProfiler(Callback):
    """Profiles a run once, into a folder that is complete or absent.

    The first step of an epoch is left out: it starts the threads that load data. A resumed run keeps the
    profile that it has.

    Args:
        folder: gets profile.html, profile.json and trace.json.gz, as soon as the steps are measured.
        settings: settings that the advice depends on.
        threads: number of threads that load data.
        tell: called with the verdict, or with the reason why there is none.
    """

    def __init__(self, folder: Path, *, settings: Settings, threads: int, tell: Callable[[str], None]) -> None:
        self.folder, self.settings, self.threads, self.tell = folder, settings, threads, tell
        self._over = True
        self._to_skip, self._to_time, self._to_trace = 0, 0, 0
        self._first_step = 0
        self._timed: list[StepTimes] = []
        self._traced = 0
        self._clock: StepClock | None = None
        self._tracer: profile | None = None
        self._usual: Profiler | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Divide the remaining steps into those to skip, to time and to trace."""
        if self.folder.is_dir() or not trainer.is_global_zero:
            return
        remove(part_path(self.folder))  # a kill may have left it
        remaining_steps = int(trainer.estimated_stepping_batches) - trainer.global_step
        batches = int(trainer.num_training_batches)
        steady = remaining_steps - -(-remaining_steps // batches)  # without the first step of each epoch
        self._to_skip = min(SKIPPED, steady // 3)
        self._to_trace = min(TRACED, (steady - self._to_skip) // 2)
        self._to_time = min(max(TIMED, 2 * self.threads), steady - self._to_skip - self._to_trace)
        self._over = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """End a step, and begin the next unless it is the first of an epoch."""
        if self._over:
            return
        if self._clock is not None:
            times = self._clock.end()
            if self._tracer is None:
                self._timed.append(times)
            else:
                self._traced += 1
        if self._traced and (self._traced == self._to_trace or trainer.is_last_batch):
            self._finish(trainer)
        elif trainer.is_last_batch:  # validation is next
            self._detach(trainer)
        elif self._to_skip:
            self._to_skip -= 1
        elif len(self._timed) < self._to_time:
            self._first_step = self._first_step or trainer.global_step
            device = torch.get_device_module(trainer.strategy.root_device)
            self._begin(trainer, wait=device.synchronize, annotate=False)
        elif self._to_trace:
            if self._tracer is None:
                self._detach(trainer)
                self._tracer = self._start_tracer(trainer)
            self._begin(trainer, wait=lambda: None, annotate=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report a run that was too short."""
        if not self._over:
            self._detach(trainer)
            self._over = True
            self.tell(
                f"no profile, for too few steps ({trainer.global_step}, {trainer.num_training_batches} an epoch): "
                "lower data.batch_size or raise trainer.max_epochs"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove clock and tracer: the process may continue."""
        self._over = True
        self._detach(trainer)
        if self._tracer is not None:
            self._tracer.stop()

    def _begin(self, trainer: pl.Trainer, *, wait: Callable[[], object], annotate: bool) -> None:
        if self._clock is None:
            self._clock, self._usual = StepClock(wait=wait, annotate=annotate), trainer.profiler  # type: ignore[attr-defined]
            trainer.profiler = self._clock  # type: ignore[attr-defined]
        self._clock.begin()

    def _detach(self, trainer: pl.Trainer) -> None:
        if self._clock is not None:
            trainer.profiler = self._usual  # type: ignore[attr-defined]
            self._clock = None

    def _start_tracer(self, trainer: pl.Trainer) -> profile:
        # Kineto reports its own start, and each GPU that is not there, on standard error.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        on_gpu = trainer.strategy.root_device.type == "cuda"
        tracer = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            with_stack=True,  # a quarter slower, and names the line that waits for the device
        )
        tracer.start()
        return tracer

    def _finish(self, trainer: pl.Trainer) -> None:
        self._detach(trainer)
        self._over = True
        tracer, self._tracer = self._tracer, None
        assert tracer is not None
        device = trainer.strategy.root_device
        torch.get_device_module(device).synchronize()  # the kernels of the steps must have ended
        tracer.stop()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(self.folder) as part:
            part.mkdir()
            trace = part / "trace.json.gz"
            tracer.export_chrome_trace(str(trace))
            with gzip.open(trace) as file:
                measured = self._profile(json.load(file)["traceEvents"], device)
            verdict_text = verdict(measured)
            figures = {"verdict": verdict_text, "shares": measured.shares, "step_seconds": measured.step_seconds}
            (part / "profile.json").write_text(json.dumps(figures | asdict(measured), indent=1))
            (part / "profile.html").write_text(page(measured, verdict_text), encoding="utf-8")
        self.tell(verdict_text)

    def _profile(self, events: list[dict[str, Any]], device: torch.device) -> Profile:
        others: defaultdict[str, float] = defaultdict(float)
        for step in self._timed:
            for action, seconds in step.others.items():
                others[action] += seconds / len(self._timed)
        callbacks = [action for action in others if action.startswith("[Callback]")]
        slowest = max(callbacks, key=others.__getitem__, default="")
        on_gpu = device.type == "cuda"
        seconds = sum(sum(step.phases.values()) for step in self._timed)
        # The kernel counts in KiB, that of macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        return Profile(
            settings=self.settings,
            first_step=self._first_step,
            steps=tuple(step.phases for step in self._timed),
            slowest_other=re.sub(r"\[Callback\]|{.*}", "", slowest),  # Lightning adds a callback's settings
            slowest_other_seconds=others.get(slowest, 0.0),
            cpu_share=sum(step.cpu_seconds for step in self._timed) / seconds / usable_cores(),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            gpu=torch.cuda.get_device_name(device) if on_gpu else "",
            gpu_peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else 0,
            gpu_total_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
            trace=read_trace(events),
        )
