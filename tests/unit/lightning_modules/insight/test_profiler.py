"""The verdict of a profile, what is read from a trace, and how a step is divided: all on made-up numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.config import load_config
from experiments.study.search_space import check_against
from lightning_modules.insight import profiler
from lightning_modules.insight.profile_page import page
from lightning_modules.insight.profile_trace import Operator, Trace, read_trace
from lightning_modules.insight.profile_verdict import PHASES, Profile, Settings, verdict
from lightning_modules.insight.profiler import SKIPPED, TIMED, TRACED, StepClock, StepProfiler
from sagemaker_launch.container.hyperparameters import decode, encode

TRACE = Trace(3, 0.1, (Operator("aten::convolution_backward", 0.02, 53.0),), None, 0.0, 0.0, "")
PLAIN = Settings(batch_size=64, trainable="all", cache="none", precision="32-true", compiled=False)


def profile(settings: Settings = PLAIN, trace: Trace = TRACE, gpu: str = "", **milliseconds: float) -> Profile:
    """A profile of two equal steps of 100 ms, unless other phases than forward and backward are given."""
    phases = {"forward": 40.0, "backward": 60.0} | milliseconds
    step = {phase: phases.get(phase, 0.0) / 1000 for phase in PHASES}
    return Profile(
        settings, 10, (step, step), "Slow.on_train_batch_end", 0.0, 0.5, 10**9, gpu, 2 * 10**9, 80 * 10**9, trace
    )


def on_gpu(idle: float, **changes: Any) -> Profile:
    return replace(profile(trace=replace(TRACE, gpu_idle=idle, **changes)), gpu="H100")


@pytest.mark.parametrize(
    ("cache", "trainable", "cores", "advice"),
    [
        ("none", "all", 0.3, "raise data.num_workers or use data.cache decoded"),
        ("none", "head", 0.3, "raise data.num_workers or use data.cache features"),
        ("none", "all", 0.9, "the cores are busy, use data.cache decoded"),
        ("decoded", "all", 0.3, "raise data.num_workers"),
        ("decoded", "all", 0.9, "the cores are busy, use a machine with more of them"),
        ("features", "head", 0.3, "raise data.batch_size"),
    ],
)
def test_waiting_for_data_names_what_is_left_to_do(cache: Any, trainable: Any, cores: float, advice: str) -> None:
    waiting = profile(replace(PLAIN, cache=cache, trainable=trainable), data=178.0)
    assert verdict(replace(waiting, cpu_share=cores)) == f"64 % of the step waits for data: {advice}"


def test_data_counts_before_an_idle_gpu() -> None:
    waiting = replace(on_gpu(0.9), steps=profile(data=178.0).steps)
    assert verdict(waiting).startswith("64 % of the step waits for data")


def test_a_gpu_that_idles_on_tiny_batches_gets_larger_ones() -> None:
    assert verdict(on_gpu(0.71)) == (
        "the GPU is idle for 71 % of the step, 64 images are too few for it: "
        "raise data.batch_size (2.0 of 80 GB are used)"
    )


def test_reads_that_keep_a_gpu_idle_are_named() -> None:
    sentence = verdict(on_gpu(0.5, waits=200.0, wait_share=0.3, wait_place="my.py(7): step"))
    assert sentence.startswith("30 % of the step reads values off the device, 200 times a step by my.py(7): step: keep")


def test_a_busy_gpu_may_be_waited_for() -> None:
    """A loss that is read at the end of a step shows the time of the whole step as waiting, and costs nothing."""
    assert verdict(on_gpu(0.02, waits=1.0, wait_share=0.9)).startswith("compute-bound")


def test_a_slow_callback_is_named() -> None:
    slow = profile(other=100.0)
    assert verdict(slow) == (
        "50 % of the step is neither data nor computation: raise data.batch_size, so that an epoch has fewer steps"
    )
    assert verdict(replace(slow, slowest_other_seconds=0.09)) == (
        "50 % of the step is neither data nor computation: Slow.on_train_batch_end takes 90.0 ms"
    )


@pytest.mark.parametrize(
    ("settings", "gpu", "phases", "advice"),
    [
        (PLAIN, "", {}, "backward takes 60 % of .*: a GPU, a smaller data.image_size or less in model.trainable would"),
        (PLAIN, "H100", {}, "backward takes 60 % .*: set trainer.precision bf16-mixed"),
        (replace(PLAIN, precision="bf16-mixed"), "H100", {}, "trainer.compile true, a smaller data.image_size"),
        (replace(PLAIN, precision="bf16-mixed", compiled=True), "H100", {}, ": a smaller data.image_size or less"),
        (PLAIN, "", {"copy": 100.0}, "copy and augmentation takes 50 % .*: use a weaker data.augment"),
        (PLAIN, "", {"optimiser": 100.0}, "optimiser takes 50 % .*: raise data.batch_size"),
        (replace(PLAIN, cache="features", trainable="head"), "", {}, ": raise data.batch_size"),
    ],
)
def test_a_step_that_computes_names_phase_operator_and_what_could_help(
    settings: Settings, gpu: str, phases: dict[str, float], advice: str
) -> None:
    sentence = verdict(profile(settings, gpu=gpu, **phases))
    assert sentence.startswith("compute-bound, ")
    assert "aten::convolution_backward is the slowest operator" in sentence
    assert re.search(advice, sentence), sentence


def event(category: str, name: str, begin: float, seconds: float, thread: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": seconds, "tid": thread, "args": args}


STEPS = [event("user_annotation", "step", 0, 100), event("user_annotation", "step", 100, 100)]


def test_an_operator_is_counted_without_those_that_it_calls_and_only_where_training_is() -> None:
    read = read_trace(
        [
            {"ph": "M", "name": "process_name"},
            *STEPS,
            event("cpu_op", "outer", 10, 50),
            event("cpu_op", "inner", 20, 30),
            event("cpu_op", "inner", 110, 40),
            event("cpu_op", "decoding", 0, 200, thread=2),
            event("cpu_op", "after", 250, 10),
        ]
    )
    assert [(operator.name, operator.calls) for operator in read.operators] == [("inner", 1.0), ("outer", 0.5)]
    assert [operator.seconds for operator in read.operators] == pytest.approx([35e-6, 10e-6])
    assert (read.steps, read.seconds, read.gpu_idle) == (2, pytest.approx(100e-6), None)


def test_a_gpu_is_idle_where_no_stream_works() -> None:
    launch = event("cpu_op", "aten::conv2d", 5, 5, **{"External id": 7})
    kernels = [
        event("kernel", "sm90_xmma", 20, 60, thread=100, **{"External id": 7}),
        event("gpu_memcpy", "Memcpy HtoD", 50, 50, thread=101),
        event("kernel", "nameless", 190, 40, thread=100),
    ]
    read = read_trace([*STEPS, launch, *kernels])
    assert read.gpu_idle == pytest.approx(1 - (80 + 10) / 200)
    assert [operator.name for operator in read.operators] == ["aten::conv2d", "Memcpy HtoD", "nameless"]


def test_reads_are_counted_with_their_loop_and_named_by_the_function_of_ours() -> None:
    frames = [
        event("python_function", "pytorch_lightning/trainer.py(1): fit", 0, 200),
        event("python_function", "ours/net.py(97): training_step", 10, 90),
        event("python_function", "torch/nn/modules/module.py(3): __call__", 11, 80),
        event("python_function", "<built-in method item of Tensor>", 20, 2),
    ]
    reads = [event("cpu_op", "aten::item", begin, 2) for begin in (20, 30, 95)]
    read = read_trace([*STEPS, *frames, *reads])
    assert (read.waits, read.wait_place) == (1.5, "ours/net.py(97): training_step")
    assert read.wait_share == pytest.approx((3 * 2 + 8) / 200), "the gap of 63 us is no loop"


def test_on_a_gpu_what_counts_is_where_the_host_waits() -> None:
    kernel = event("kernel", "k", 20, 60, thread=100)
    waits = [event("cuda_runtime", "cudaStreamSynchronize", 30, 50), event("cuda_runtime", "cudaLaunchKernel", 1, 5)]
    read = read_trace([*STEPS, kernel, *waits, event("cpu_op", "aten::item", 90, 5, **{"External id": 1})])
    assert (read.waits, read.wait_share) == (0.5, pytest.approx(0.25))


def test_the_counters_of_an_optimiser_are_not_held_against_the_step() -> None:
    frames = [
        event("python_function", "ours/net.py(97): training_step", 10, 90),
        event("python_function", "torch/optim/adam.py(3): step", 11, 80),
        event("python_function", "<built-in method item of Tensor>", 20, 2),
    ]
    assert read_trace([*STEPS, *frames, event("cpu_op", "aten::item", 20, 2)]).waits == 0


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    clock = [0.0]
    monkeypatch.setattr(profiler.time, "perf_counter", lambda: clock[0])
    return clock


def test_each_moment_of_a_step_belongs_to_one_phase(now: list[float]) -> None:
    waited: list[float] = []
    clock = StepClock(wait=lambda: waited.append(now[0]), annotate=False)
    clock.stop("[Callback]StepProfiler.on_train_batch_end")  # it began before this clock
    clock.begin()
    for action, seconds in (
        ("[_TrainingEpochLoop].train_dataloader_next", 1),
        ("[Strategy]SingleDeviceStrategy.batch_to_device", 2),
    ):
        with clock.profile(action):
            now[0] += seconds
    with clock.profile("run_training_batch"):
        now[0] += 4
        with clock.profile("[LightningModule]ImageClassifier.optimizer_step"):
            now[0] += 8
            with clock.profile("[Strategy]SingleDeviceStrategy.training_step"):
                now[0] += 16
            with clock.profile("[Strategy]SingleDeviceStrategy.backward"), clock.profile("[Callback]A.backward"):
                now[0] += 32
            with clock.profile("[LightningModule]ImageClassifier.configure_gradient_clipping"):
                now[0] += 64
    times = clock.end()
    assert times.phases == {"data": 1, "copy": 2, "forward": 16, "backward": 0, "optimiser": 72, "other": 36}
    assert times.others == {"run_training_batch": 4, "[Callback]A.backward": 32, "Lightning's loop": 0}
    assert waited, "a device that works on its own is waited for"


def test_a_phase_that_raises_is_left(now: list[float]) -> None:
    clock = StepClock(wait=lambda: None, annotate=False)
    clock.begin()
    with pytest.raises(KeyError), clock.profile("[Strategy]X.training_step"):
        raise KeyError
    now[0] += 1
    assert clock.end().phases["other"] == 1


def started(
    folder: Path, *, total: int, batches: int, done: int = 0, threads: int = 1, zero: bool = True
) -> StepProfiler:
    callback = StepProfiler(folder / "profile", settings=PLAIN, threads=threads, tell=lambda _: None)
    trainer = SimpleNamespace(
        estimated_stepping_batches=total, global_step=done, num_training_batches=batches, is_global_zero=zero
    )
    callback.on_train_start(trainer, SimpleNamespace())
    return callback


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"total": 1000, "batches": 100}, (SKIPPED, TIMED, TRACED)),
        ({"total": 1000, "batches": 100, "threads": 48}, (SKIPPED, 96, TRACED)),
        ({"total": 9, "batches": 3}, (2, 2, 2)),
        ({"total": 9, "batches": 3, "done": 6}, (0, 1, 1)),
        ({"total": 5, "batches": 1}, (0, 0, 0)),
    ],
)
def test_a_short_run_is_divided_too(tmp_path: Path, run: dict[str, int], expected: tuple[int, int, int]) -> None:
    callback = started(tmp_path, **run)
    assert (callback._to_skip, callback._to_time, callback._to_trace) == expected


def test_only_the_first_process_measures_and_only_once(tmp_path: Path) -> None:
    assert not started(tmp_path, total=100, batches=10)._over
    assert started(tmp_path, total=100, batches=10, zero=False)._over
    (tmp_path / "profile").mkdir()
    assert started(tmp_path, total=100, batches=10)._over


def test_the_page_says_everything_in_words_and_needs_nothing_else() -> None:
    shown = page(replace(on_gpu(0.5, wait_place="<b>"), gpu="H100 & co"), "a <verdict>")
    for text in (
        "a &lt;verdict&gt;",
        "H100 &amp; co",
        "50 % busy",
        "2.00 of 80 GB",
        "&lt;b&gt;",
        'aria-label="Steps by',
    ):
        assert text in shown
    assert shown.count("<g>") == 2
    assert "http" not in shown and "<script" not in shown and "src=" not in shown


def test_a_job_is_told_to_profile_and_a_search_is_not() -> None:
    config = load_config(None, {"trainer.profile": "true"})
    assert load_config(None, decode(encode(config))).trainer.profile
    with pytest.raises(ValueError, match=r"trainer\.profile must be false in a search: profile one run first"):
        check_against({}, config)
