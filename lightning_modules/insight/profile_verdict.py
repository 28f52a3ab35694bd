"""The verdict of a profile in one sentence: what slows the step down, and which setting to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lightning_modules.insight.profile_trace import Trace
from lightning_modules.network import Trainable

PHASES: Mapping[str, str] = {
    "data": "waiting for data",
    "copy": "copy and augmentation",
    "forward": "forward",
    "backward": "backward",
    "optimiser": "optimiser",
    "other": "callbacks and loop",
}
"""The phases of a step, in order, and their names on the page."""
COMPUTING = ("copy", "forward", "backward", "optimiser")

# Share of the step from which a phase is a bottleneck. Nothing runs while data is loaded, so its share is lower.
DATA_SHARE = 0.2
OTHER_SHARE = 0.3
IDLE_SHARE = 0.3
WAIT_SHARE = 0.1
BUSY_CORES = 0.8
"""Share of the cores' time from which more threads would not help: no core is free."""


@dataclass(frozen=True)
class Settings:
    """Settings of the run that the advice depends on."""

    batch_size: int
    trainable: Trainable
    cache: Literal["none", "decoded", "features"]
    precision: str
    compiled: bool


@dataclass(frozen=True)
class Profile:
    """The measurements of a run."""

    settings: Settings
    first_step: int
    """The first timed step of the run, counted from 0."""
    steps: tuple[Mapping[str, float], ...]
    """Seconds of each timed step by phase."""
    slowest_other: str
    """The callback or hook that takes most of `other`."""
    slowest_other_seconds: float
    """Mean per step."""
    cpu_share: float
    """CPU time of this process, as a share of all cores."""
    peak_rss_bytes: int
    """Peak memory of this process since its start."""
    gpu: str
    """Name of the GPU; empty without one."""
    gpu_peak_bytes: int
    gpu_total_bytes: int
    trace: Trace

    @property
    def step_seconds(self) -> float:
        """Mean length of a timed step."""
        return sum(sum(step.values()) for step in self.steps) / len(self.steps)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Mean seconds of a step by phase."""
        return {phase: sum(step[phase] for step in self.steps) / len(self.steps) for phase in PHASES}

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of the step by phase."""
        return {phase: value / self.step_seconds for phase, value in self.seconds.items()}


def verdict(profile: Profile) -> str:
    """Say what slows the step down and what to change: first avoidable work, then the computation itself."""
    shares, trace = profile.shares, profile.trace
    idle = trace.gpu_idle
    if shares["data"] >= DATA_SHARE:
        return f"{_percent(shares['data'])} of the step waits for data: {_faster_data(profile)}"
    if trace.wait_share >= WAIT_SHARE and (idle is None or idle >= IDLE_SHARE):
        location = f" by {trace.wait_place}" if trace.wait_place else ""
        return (
            f"{_percent(trace.wait_share)} of the step reads values off the device, {trace.waits:.0f} times a step"
            f"{location}: keep them as tensors, and read them once an epoch"
        )
    if shares["other"] >= OTHER_SHARE:
        return f"{_percent(shares['other'])} of the step is neither data nor computation: {_less_other(profile)}"
    if idle is not None and idle >= IDLE_SHARE:
        used = f"{profile.gpu_peak_bytes / 1e9:.1f} of {profile.gpu_total_bytes / 1e9:.0f} GB are used"
        few = f"{profile.settings.batch_size} images are too few for it"
        return f"the GPU is idle for {_percent(idle)} of the step, {few}: raise data.batch_size ({used})"
    top = trace.operators[0].name
    phase = max(COMPUTING, key=shares.__getitem__)
    most = f"{PHASES[phase]} takes {_percent(shares[phase])} of the step and {top} is the slowest operator"
    return f"compute-bound, {most}: {_less_computing(profile, phase)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _faster_data(profile: Profile) -> str:
    settings, busy = profile.settings, profile.cpu_share >= BUSY_CORES
    if settings.cache == "features":
        return "raise data.batch_size"
    ways = [] if busy else ["raise data.num_workers"]
    if settings.cache == "none":
        ways.append(f"use data.cache {'features' if settings.trainable == 'head' else 'decoded'}")
    return ("the cores are busy, " if busy else "") + " or ".join(ways or ["use a machine with more of them"])


def _less_other(profile: Profile) -> str:
    if profile.slowest_other_seconds >= profile.seconds["other"] / 2:
        return f"{profile.slowest_other} takes {profile.slowest_other_seconds * 1000:.1f} ms"
    return "raise data.batch_size, so that an epoch has fewer steps"


def _less_computing(profile: Profile, phase: str) -> str:
    settings = profile.settings
    if phase == "copy":
        return "use a weaker data.augment or a smaller data.image_size"
    if phase == "optimiser" or settings.cache == "features":
        return "raise data.batch_size"
    smaller = "a smaller data.image_size" + ("" if settings.trainable == "head" else " or less in model.trainable")
    if not profile.gpu:
        return f"a GPU, {smaller} would help"
    if settings.precision == "32-true":
        return "set trainer.precision bf16-mixed"
    return f"{'' if settings.compiled else 'trainer.compile true, '}{smaller} or a faster GPU would help"
