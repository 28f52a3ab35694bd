"""What a person sees while a study runs: a line for each trial, an ETA within the time limit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import optuna
import pytest

from experiments import console
from experiments.callbacks.progress import EpochProgress
from experiments.console import progress as show_progress
from experiments.runs.folder import Outcome
from experiments.study import progress as sweep_progress
from experiments.study.progress import SweepProgress
from experiments.study.trials import tell


class Clock:
    """Time that a test decides."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (console, sweep_progress):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def printed(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """All that was said so far."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: request.param)
    heard: list[str] = []

    def read() -> str:
        heard.append(capsys.readouterr().err)
        return "".join(heard)

    return read


def new_study() -> optuna.Study:
    study = optuna.create_study()
    study.set_user_attr("metric", "val_loss")
    return study


def ask(study: optuna.Study, rate: float) -> optuna.Trial:
    study.enqueue_trial({"optimizer.learning_rate": rate, "data.batch_size": 64}, skip_if_exists=False)
    trial = study.ask()
    trial.suggest_float("optimizer.learning_rate", 1e-5, 1.0)
    trial.suggest_categorical("data.batch_size", [32, 64])
    return trial


def test_each_trial_that_ends_leaves_a_line_with_its_parameters(printed: Callable[[], str], clock: Clock) -> None:
    study = new_study()
    shown = SweepProgress(study, 4, float("inf"))
    study.tell(ask(study, 0.0123456), 0.51)
    clock.now = 30
    shown.update()
    assert "trial 0 complete, val_loss 0.5100: optimizer.learning_rate 0.01235, data.batch_size 64\n" in printed()
    assert "best val_loss 0.5100 (trial 0), 90 s to go" in printed().replace("2 min", "90 s")
    pruned = ask(study, 0.5)
    pruned.report(2.5, 1)
    pruned.set_user_attr("failure_reason", "pruned after epoch 1")
    study.tell(pruned, state=optuna.trial.TrialState.PRUNED)
    failed = ask(study, 0.25)
    failed.set_user_attr("failure_reason", "OSError: disk")
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    shown.update()
    shown.update()
    shown.close()
    lines = printed()
    assert lines.count("trial 1 pruned, val_loss 2.5000: optimizer.learning_rate 0.5") == 1
    assert "(pruned after epoch 1)" in lines
    assert "trial 2 failed: optimizer.learning_rate 0.25, data.batch_size 64 (OSError: disk)" in lines
    assert "2/4" in lines, "a trial that failed does not count"


def test_a_trial_that_diverged_says_so_in_place_of_the_value_that_the_sampler_got(printed: Callable[[], str]) -> None:
    study = new_study()
    shown = SweepProgress(study, 4, float("inf"))
    tell(study, ask(study, 0.5), Outcome("PRUNED", 2.5, reason="diverged at epoch 1: val_loss is nan"))
    shown.update()
    shown.close()
    assert "trial 0 diverged at epoch 1: val_loss is nan: optimizer.learning_rate 0.5" in printed()
    assert "2.5" not in printed()


def test_trials_of_an_earlier_command_are_not_printed_again(printed: Callable[[], str]) -> None:
    study = new_study()
    study.tell(ask(study, 0.1), 0.5)
    shown = SweepProgress(study, 2, float("inf"))
    shown.update()
    shown.close()
    assert "trial 0" not in printed()


@pytest.mark.parametrize(
    ("deadline", "text"), [(float("inf"), "9 min to go"), (1000.0, "9 min to go"), (150.0, "90 s of sweep.timeout_s")]
)
def test_what_is_left_respects_the_time_limit(
    deadline: float, text: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    study = new_study()
    shown = SweepProgress(study, 10, deadline)
    clock.now = 30  # the feature pass, once for all trials
    shown.start_clock()
    study.tell(ask(study, 0.1), 0.5)
    clock.now = 90
    shown.update()
    assert text.replace("90 s of", "60 s of") in capsys.readouterr().err


def test_epochs_of_other_processes_leave_lines_here(printed: Callable[[], str]) -> None:
    study = new_study()
    shown = SweepProgress(study, 2, float("inf"), shows_epochs=True)
    trial = ask(study, 0.1)
    for epoch in (1, 2):
        trial.report(1 / epoch, epoch)
        shown.update()
        shown.update()
    shown.close()
    assert printed().count("trial 0: epoch 1 val_loss 1.0000") == 1
    assert printed().count("trial 0: epoch 2 val_loss 0.5000") == 1


def test_long_work_without_a_terminal_says_now_and_then_how_far_it_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_progress("features", 2400, "photo") as advance:
        for _ in range(24):
            clock.now += 2
            advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "features: 500 of 2,400 photos, 38 s to go"
    assert len(lines) == 4


def test_a_run_that_ends_by_an_exception_leaves_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trial does that is pruned: Lightning calls no `teardown` then."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = EpochProgress("trial 3", {})
    trainer = SimpleNamespace(num_training_batches=4, global_step=0, max_epochs=2)
    shown.on_train_start(trainer, None)
    shown.on_train_batch_end()
    shown.on_exception(trainer, None, optuna.TrialPruned())
    assert capsys.readouterr().err.endswith("\r"), "an empty line, not a bar"
    assert shown._bar is None
