"""A run on disk: what a kill or two threads must not lose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.runs.folder import Outcome, Published, RunFolder, environment_tags
from tests.conftest import REPOSITORY


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has started."""
    folder = RunFolder(tmp_path / "run")
    folder.start("trial 0003", {"seed": 0, "data.root": Path("photos")}, {"study": "digits"})
    return folder


def again(folder: RunFolder) -> RunFolder:
    """The same run as a new process sees it."""
    return RunFolder(folder.path)


def steps(folder: RunFolder) -> list[int]:
    return [line.step for line in again(folder).metric_lines()]


# Start, finish, reopen


def test_no_duration_is_negative_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    folder.record(1, {"val_loss": 0.5})
    wall = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: wall() - 3600 * 10**9)  # the end of summer time, or a dead battery
    folder.record(2, {"val_loss": 0.4})
    resumed = again(folder)
    resumed.record(3, {"val_loss": 0.3})
    resumed.record_system({"cpu": 1.0})
    time.sleep(0.01)
    resumed.finish(Outcome("COMPLETE", 0.3, {"val_loss": 0.3}))
    times = [line.timestamp_ms for line in (*resumed.metric_lines(), *resumed.system_lines())]
    record = resumed.read()
    assert record.ended_ms is not None
    assert record.started_ms <= times[0] <= times[1] <= times[2] <= times[3] < record.ended_ms
    assert 0 < record.duration_ms < 60_000


def test_a_clock_that_jumps_ahead_makes_no_run_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    wall = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: wall() + 3600 * 10**9)
    folder.finish(Outcome("COMPLETE"))
    record = folder.read()
    assert record.duration_ms < 60_000


def test_a_folder_without_a_run_has_no_outcome_and_no_metrics(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "none")
    assert not folder.has_started
    assert folder.outcome is None
    assert folder.metric_lines() == []
    assert not folder.path.exists()


def test_a_started_run_is_read_back_with_params_as_text(folder: RunFolder) -> None:
    record = again(folder).read()
    assert folder.has_started
    assert folder.outcome is None
    assert record.name == "trial 0003"
    assert record.params == {"seed": "0", "data.root": "photos"}
    assert record.tags == {"study": "digits"}
    assert (folder.run_id, folder.is_published) == (None, False)
    assert record.started_ms > 1_700_000_000_000


def test_every_run_gets_a_key_of_its_own(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        run = RunFolder(tmp_path / name)
        run.start(name, {}, {})
        keys.add(run.read().key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("COMPLETE", 0.25, {"val_loss": 0.25, "test_accuracy": 1.0}),
        Outcome("PRUNED", 1.5, reason="pruned after epoch 2"),
        Outcome("FAIL", reason="ValueError: “quoted” \n second line"),
    ],
    ids=lambda outcome: outcome.state,
)
def test_an_outcome_is_read_back_as_it_was(folder: RunFolder, outcome: Outcome) -> None:
    folder.note_published(Published("sqlite:///x", "abc"))
    folder.finish(outcome)
    assert again(folder).outcome == outcome
    assert not again(folder).is_published, "what MLflow has is not the whole run"
    folder.note_published(Published("sqlite:///x", "abc", folder.files()))
    assert again(folder).is_published
    assert 0 <= again(folder).read().duration_ms < 60_000


def test_a_reopened_run_has_no_outcome_and_keeps_the_rest(folder: RunFolder) -> None:
    folder.record(1, {"val_loss": 0.5})
    key = folder.read().key
    folder.finish(Outcome("COMPLETE", 0.5))
    folder.note_published(Published("sqlite:///x", "abc", folder.files()))
    folder.reopen()
    record = again(folder).read()
    assert folder.outcome is None
    assert (record.key, folder.run_id, folder.is_published) == (key, "abc", False)
    assert record.params == {"seed": "0", "data.root": "photos"}
    assert steps(folder) == [1]


def test_params_and_tags_are_added_to_the_rest(folder: RunFolder) -> None:
    folder.add_tags({"debugger.rule": "NoIssuesFound"})
    folder.add_params({"data.classes": 10, "seed": 1})
    record = again(folder).read()
    assert record.tags == {"study": "digits", "debugger.rule": "NoIssuesFound"}
    assert record.params == {"seed": "1", "data.root": "photos", "data.classes": "10"}


# Metrics


def test_metrics_of_an_epoch_are_noted_once(folder: RunFolder) -> None:
    folder.record(1, {"val_loss": 0.5})
    folder.record(1, {"val_loss": 0.4})
    again(folder).record(1, {"val_loss": 0.3})
    assert [(line.step, line.metrics) for line in folder.metric_lines()] == [(1, {"val_loss": 0.5})]


def test_other_metrics_of_the_same_step_are_noted_beside_them(folder: RunFolder) -> None:
    folder.record(1, {"val_loss": 0.5})
    folder.record(1, {"train_loss": 90.0})
    again(folder).record(1, {"train_loss": 80.0})
    again(folder).record(2, {"val_loss": 0.4})
    assert [(line.step, line.metrics) for line in folder.metric_lines()] == [
        (1, {"val_loss": 0.5}),
        (1, {"train_loss": 90.0}),
        (2, {"val_loss": 0.4}),
    ]


def test_samples_of_the_machine_are_counted_apart_from_epochs(folder: RunFolder) -> None:
    folder.record(1, {"val_loss": 0.5})
    folder.record_system({"system/cpu": 90.0})
    again(folder).record_system({"system/cpu": 80.0})
    assert [(line.step, line.metrics) for line in folder.system_lines()] == [
        (0, {"system/cpu": 90.0}),
        (1, {"system/cpu": 80.0}),
    ]
    assert steps(folder) == [1]


def test_what_is_published_does_not_touch_what_the_training_process_writes(folder: RunFolder) -> None:
    before = (folder.path / "run.json").read_bytes()
    again(folder).note_published(Published("sqlite:///x", "abc"))
    assert (folder.path / "run.json").read_bytes() == before


def test_a_loss_that_is_no_number_is_read_back(folder: RunFolder) -> None:
    folder.record(1, {"val_loss": float("nan"), "train_loss": float("inf")})
    [line] = again(folder).metric_lines()
    assert str(line.metrics) == "{'val_loss': nan, 'train_loss': inf}"


def test_a_line_torn_at_any_byte_is_skipped_and_the_next_record_is_whole(folder: RunFolder) -> None:
    path = folder.path / "metrics.jsonl"
    for step in (1, 2):
        folder.record(step, {"val_loss": 0.5, "größe": 1e-5})
    whole = path.read_bytes()
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # A line that lacks nothing but its end is whole.
        kept = [step for step, end in zip((1, 2), ends, strict=True) if cut >= end]
        assert steps(folder) == kept, f"cut at byte {cut}"
        resumed = again(folder)
        for step in (1, 2, 3):
            resumed.record(step, {"val_loss": 0.5, "größe": 1e-5})
        assert steps(folder) == [1, 2, 3], f"cut at byte {cut}"
        assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("torn", [b"\0" * 64, b'{"step": 2, "metrics": {"\xff'], ids=["zeros", "no text"])
def test_what_a_power_cut_leaves_at_the_end_is_skipped(folder: RunFolder, torn: bytes) -> None:
    # A file system may have noted the new length of a file before its data: the end then reads as zeros.
    folder.record(1, {"val_loss": 0.5})
    with (folder.path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    resumed = again(folder)
    resumed.record(2, {"val_loss": 0.4})
    assert steps(folder) == [1, 2]


# run.json


@pytest.mark.parametrize("left", ["", "{", '{"name": "half'])
def test_what_a_kill_left_beside_run_json_is_harmless(folder: RunFolder, left: str) -> None:
    (folder.path / ".run.json.part.sagemaker-ignore").write_text(left)
    assert again(folder).read().name == "trial 0003"
    again(folder).add_params({"data.classes": 10})
    assert again(folder).read().params["data.classes"] == "10"
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.json"]


def test_a_kill_while_writing_leaves_the_earlier_run_json(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = folder.read()

    def killed(values: object, file: Any, **options: object) -> None:
        file.write(json.dumps(values)[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("experiments.runs.folder.json.dump", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.finish(Outcome("COMPLETE", 0.5))
    assert again(folder).read() == before


def test_a_reader_never_sees_half_of_run_json(folder: RunFolder) -> None:
    folder.add_params({"filler": "x" * 100_000})
    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(lambda: [folder.add_params({"round": number}) for number in range(30)])
        while not writing.done():
            assert again(folder).read().name == "trial 0003"
        writing.result()
    assert folder.read().params["round"] == "29"


def test_a_record_is_parsed_again_only_when_the_file_has_changed(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []

    def counting(content: bytes) -> Any:
        parsed.append(content)
        return json.loads(content)

    monkeypatch.setattr("experiments.runs.folder._parse", counting)
    assert [again(folder).read().name for _ in range(3)] == ["trial 0003"] * 3
    assert again(folder).outcome is None and again(folder).fingerprint is None and folder.has_started
    assert len(parsed) == 1
    folder.finish(Outcome("COMPLETE", 0.5))
    assert [again(folder).outcome for _ in range(3)] == [Outcome("COMPLETE", 0.5)] * 3
    assert len(parsed) == 2


def test_entries_of_other_versions_are_left_out(folder: RunFolder) -> None:
    path = folder.path / "run.json"
    record = folder.read()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run_id": "abc"}))
    assert again(folder).read() == record


def test_two_threads_lose_nothing(folder: RunFolder) -> None:
    def work(thread: int) -> None:
        for number in range(10):
            folder.record(number, {f"metric_{thread}": 1.0})
            folder.add_tags({f"entry_{thread}_{number}": "x"})
            folder.add_params({f"param_{thread}_{number}": number})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    lines = [(line.step, *line.metrics) for line in again(folder).metric_lines()]
    wanted = [(number, thread) for thread in range(4) for number in range(10)]
    assert sorted(lines) == sorted((number, f"metric_{thread}") for number, thread in wanted)
    record = again(folder).read()
    assert {f"entry_{thread}_{number}" for number, thread in wanted} <= record.tags.keys()
    assert {f"param_{thread}_{number}" for number, thread in wanted} <= record.params.keys()


# Environment


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Tags that other tests have asked for are forgotten, and so are those of this one."""
    environment_tags.cache_clear()
    yield
    environment_tags.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_the_machine_is_noted_without_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    tags = environment_tags()
    assert "torch" not in sys.modules
    assert tags["hardware.processor"]
    assert 1 <= int(tags["hardware.cores"]) <= (os.cpu_count() or 1)
    assert float(tags["hardware.memory_gb"]) > 0.5
    assert not {"hardware.gpu", "hardware.threads"} & tags.keys()
    assert "origin" not in tags, "a job can't know it"


@pytest.mark.usefixtures("asked_anew")
def test_the_commit_is_noted_where_there_is_git(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(environment_tags()["mlflow.source.git.commit"]) == 40
    environment_tags.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    assert "mlflow.source.git.commit" not in environment_tags()


@pytest.mark.usefixtures("asked_anew")
def test_the_commit_is_noted_where_another_user_owns_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Git's own tests have this variable.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, check=False).returncode
    assert len(environment_tags()["mlflow.source.git.commit"]) == 40


@pytest.mark.parametrize(("gpus", "noted"), [([], "none"), (["H100", "H100"], "H100, H100")])
@pytest.mark.usefixtures("asked_anew")
def test_what_torch_computes_on_is_noted_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, gpus: list[str], noted: str
) -> None:
    cuda = SimpleNamespace(device_count=lambda: len(gpus), get_device_name=gpus.__getitem__)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, get_num_threads=lambda: 1))
    tags = environment_tags()
    assert (tags["hardware.gpu"], tags["hardware.threads"]) == (noted, "1")


def test_the_best_value_has_a_name_of_its_own_beside_the_curve(folder: RunFolder) -> None:
    folder.record(1, {"val_loss": 0.5, "train_loss": 0.4})
    assert folder.final_metrics() == {}
    folder.finish(Outcome("COMPLETE", 0.5, {"val_loss": 0.5, "train_loss": 0.4, "test_loss": 0.6, "usd": 1.0}))
    assert folder.final_metrics() == {"best_val_loss": 0.5, "test_loss": 0.6, "usd": 1.0}
