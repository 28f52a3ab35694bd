"""Read PyTorch's trace of some steps: operators, the GPU's busy time, where the host waits for the device.

The Chrome trace itself is read: `key_averages()` takes ten times as long (seconds, torch 2.14).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

STEP = "step"
"""Annotation around each step."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""CUDA calls in which the host waits for the device."""
READ = "aten::item"
"""The operator behind `.item()`, `float()`, `int()` and `bool()` of a tensor: on a GPU each waits for the device."""
BURST_MICROSECONDS = 50.0
"""Longest gap between reads of one loop over values, which includes the time between them."""
TOP_OPERATORS = 12
_LIBRARY = re.compile(r"(^|/)(torch|torchmetrics|pytorch_lightning|lightning_fabric)/|^(?!.*\.py\(\d+\): )")
# The optimiser's own step counters, and the gradient scaler, which must know whether there was an overflow.
_OWN_READS = re.compile(r"(^|/)torch/(optim|amp)/")

Event = Mapping[str, Any]
"""An event of a Chrome trace: `ts` and `dur` in microseconds."""


@dataclass(frozen=True)
class Operator:
    """The time of one operator in a step, without the operators that it calls."""

    name: str
    seconds: float
    calls: float


@dataclass(frozen=True)
class Trace:
    """The traced steps, per step."""

    steps: int
    seconds: float
    operators: tuple[Operator, ...]
    """By falling time; on a GPU the time is the kernels'."""
    gpu_idle: float | None
    """Share of the time in which the GPU is idle; None without a GPU."""
    waits: float
    """How often the host reads a value off the device, and so waits for it."""
    wait_share: float
    """Share of the time spent in these reads, loops over values included."""
    wait_place: str
    """The function that reads most often, as file(line): name."""


def read_trace(events: Iterable[Event]) -> Trace:
    """Read the events of a Chrome trace that has the annotation `step` around each step."""
    timed = sorted(
        (event for event in events if event.get("ph") == "X"), key=lambda event: (event["ts"], -event["dur"])
    )
    steps = [event for event in timed if event["name"] == STEP and event["cat"] == "user_annotation"]
    begin, end, thread = steps[0]["ts"], _end(steps[-1]), steps[0]["tid"]
    timed = [event for event in timed if begin <= event["ts"] < end]
    kernels = [event for event in timed if event.get("cat") in ON_GPU]
    self_times: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    waits: list[Event] = []
    frame_counts: Counter[str] = Counter()
    around: defaultdict[tuple[Any, str], list[Event]] = defaultdict(
        list
    )  # by thread and category, from outermost to innermost
    for event in timed:
        category, name = event.get("cat", ""), event["name"]
        if category == "cpu_op" and event["tid"] == thread:  # those of other threads load data
            parents = _enclosing_events(around[event["tid"], category], event)
            calls[name] += 1
            self_times[name] += event["dur"]
            if parents:
                self_times[parents[-1]["name"]] -= event["dur"]
        if event["tid"] == thread and (name in WAITS if kernels else name == READ):
            frames = [frame["name"] for frame in _enclosing_events(around[thread, "python_function"], event)]
            if not _OWN_READS.search(next((frame for frame in reversed(frames) if ".py(" in frame), "")):
                waits.append(event)
                frame_counts[next((frame for frame in reversed(frames) if not _LIBRARY.search(frame)), "")] += 1
        if category in ("cpu_op", "python_function"):
            _enclosing_events(around[event["tid"], category], event).append(event)
    if kernels:
        self_times, calls = _by_operator(kernels, timed)
    seconds = (end - begin) / 1e6
    return Trace(
        steps=len(steps),
        seconds=seconds / len(steps),
        operators=tuple(
            Operator(name, value / 1e6 / len(steps), calls[name] / len(steps))
            for name, value in sorted(self_times.items(), key=lambda item: -item[1])[:TOP_OPERATORS]
        ),
        gpu_idle=1 - _covered(kernels, end) / 1e6 / seconds if kernels else None,
        waits=len(waits) / len(steps),
        wait_share=_spent(waits) / 1e6 / seconds,
        wait_place=frame_counts.most_common(1)[0][0] if frame_counts else "",
    )


def _end(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def _enclosing_events(begun: list[Event], event: Event) -> list[Event]:
    """The events around `event`: removes from `begun` those that ended before it."""
    while begun and _end(begun[-1]) <= event["ts"]:
        begun.pop()
    return begun


def _by_operator(kernels: list[Event], timed: list[Event]) -> tuple[defaultdict[str, float], Counter[str]]:
    """Microseconds and launches of the kernels by the operator that launched them."""
    names = {event["args"]["External id"]: event["name"] for event in timed if event.get("cat") == "cpu_op"}
    spent: defaultdict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    for event in kernels:
        name = str(names.get(event["args"].get("External id"), event["name"]))
        spent[name] += event["dur"]
        launches[name] += 1
    return spent, launches


def _spent(waits: list[Event]) -> float:
    """Microseconds in waits, and in loops between them."""
    gaps = (after["ts"] - _end(before) for before, after in pairwise(waits))
    return sum(event["dur"] for event in waits) + sum(gap for gap in gaps if gap < BURST_MICROSECONDS)


def _covered(sorted_events: list[Event], end: float) -> float:
    """Microseconds up to `end` in which at least one event is active."""
    covered, reached = 0.0, 0.0
    for event in sorted_events:
        covered += max(0.0, min(_end(event), end) - max(event["ts"], reached))
        reached = max(reached, _end(event))
    return covered
