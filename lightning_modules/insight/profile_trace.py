"""What PyTorch's trace says about the steps in it: operators, the GPU's busy time, where the host waits for the device.

Read from the Chrome trace itself: `key_averages()` takes seconds for what this takes a tenth of (torch 2.14).
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
"""One of a Chrome trace: `ts` and `dur` in microseconds."""


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
    """Share of the time spent in that, loops over values included."""
    wait_place: str
    """The function that does so most, as file(line): name."""


def read_trace(events: Iterable[Event]) -> Trace:
    """Read the events of a Chrome trace that has the annotation `step` around each step."""
    timed = sorted((one for one in events if one.get("ph") == "X"), key=lambda one: (one["ts"], -one["dur"]))
    steps = [one for one in timed if one["name"] == STEP and one["cat"] == "user_annotation"]
    begin, end, thread = steps[0]["ts"], _end(steps[-1]), steps[0]["tid"]
    timed = [one for one in timed if begin <= one["ts"] < end]
    kernels = [one for one in timed if one.get("cat") in ON_GPU]
    own: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    waits: list[Event] = []
    places: Counter[str] = Counter()
    around: defaultdict[tuple[Any, str], list[Event]] = defaultdict(list)  # thread and category: what has begun
    for one in timed:
        category, name = one.get("cat", ""), one["name"]
        if category == "cpu_op" and one["tid"] == thread:  # those of other threads load data
            parents = _still_on(around[one["tid"], category], one)
            calls[name] += 1
            own[name] += one["dur"]
            if parents:
                own[parents[-1]["name"]] -= one["dur"]
        if one["tid"] == thread and (name in WAITS if kernels else name == READ):
            frames = [frame["name"] for frame in _still_on(around[thread, "python_function"], one)]
            if not _OWN_READS.search(next((frame for frame in reversed(frames) if ".py(" in frame), "")):
                waits.append(one)
                places[next((frame for frame in reversed(frames) if not _LIBRARY.search(frame)), "")] += 1
        if category in ("cpu_op", "python_function"):
            _still_on(around[one["tid"], category], one).append(one)
    if kernels:
        own, calls = _by_operator(kernels, timed)
    seconds = (end - begin) / 1e6
    return Trace(
        steps=len(steps),
        seconds=seconds / len(steps),
        operators=tuple(
            Operator(name, value / 1e6 / len(steps), calls[name] / len(steps))
            for name, value in sorted(own.items(), key=lambda item: -item[1])[:TOP_OPERATORS]
        ),
        gpu_idle=1 - _covered(kernels, end) / 1e6 / seconds if kernels else None,
        waits=len(waits) / len(steps),
        wait_share=_spent(waits) / 1e6 / seconds,
        wait_place=places.most_common(1)[0][0] if places else "",
    )


def _end(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def _still_on(begun: list[Event], event: Event) -> list[Event]:
    """Drop from `begun` what has ended before `event`."""
    while begun and _end(begun[-1]) <= event["ts"]:
        begun.pop()
    return begun


def _by_operator(kernels: list[Event], timed: list[Event]) -> tuple[defaultdict[str, float], Counter[str]]:
    """Microseconds and launches of the kernels by the operator that launched them."""
    names = {one["args"]["External id"]: one["name"] for one in timed if one.get("cat") == "cpu_op"}
    spent: defaultdict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    for one in kernels:
        name = str(names.get(one["args"].get("External id"), one["name"]))
        spent[name] += one["dur"]
        launches[name] += 1
    return spent, launches


def _spent(waits: list[Event]) -> float:
    """Microseconds in waits and in the loops that they are in."""
    gaps = (after["ts"] - _end(before) for before, after in pairwise(waits))
    return sum(one["dur"] for one in waits) + sum(gap for gap in gaps if gap < BURST_MICROSECONDS)


def _covered(sorted_events: list[Event], end: float) -> float:
    """Microseconds up to `end` in which at least one event is active."""
    covered, reached = 0.0, 0.0
    for one in sorted_events:
        covered += max(0.0, min(_end(one), end) - max(one["ts"], reached))
        reached = max(reached, _end(one))
    return covered
