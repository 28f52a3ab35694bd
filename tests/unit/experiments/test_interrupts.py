"""Ctrl-C: once for a clean stop, twice for one at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.errors import EXIT_INTERRUPTED, InterruptedRunError
from experiments.interrupts import Interrupts, Watch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_asks_for_a_stop_and_says_so(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupts() as interrupts:
        interrupts.raise_if_requested()
        assert not interrupts.requested
        signal.raise_signal(number)
        assert interrupts.requested
        with pytest.raises(InterruptedRunError):
            interrupts.raise_if_requested()
    shown = capfd.readouterr()
    assert "stopping after this batch; once more to stop at once" in shown.err
    assert shown.out == "", "results go to standard output"


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end"])
def test_training_stops_between_two_batches(hook: str) -> None:
    with Interrupts() as interrupts:
        watch = Watch(interrupts.raise_if_requested)
        getattr(watch, hook)(None, None, None, None, 0)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(InterruptedRunError):
            getattr(watch, hook)(None, None, None, None, 1)


def test_handlers_are_as_they_were_on_exit_also_after_an_error() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run() -> None:
        with Interrupts() as interrupts:
            assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
            signal.raise_signal(signal.SIGINT)
            interrupts.raise_if_requested()

    with pytest.raises(InterruptedRunError):
        run()
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_only_the_named_signals_are_caught() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts([signal.SIGTERM]) as interrupts:
        assert signal.getsignal(signal.SIGINT) is before
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    code = (
        "import time\n"
        "from experiments.interrupts import Interrupts\n"
        "with Interrupts() as interrupts:\n"
        "    print('ready', flush=True)\n"
        "    while not interrupts.requested:\n"
        "        time.sleep(0.01)\n"
        "    print('requested', flush=True)\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned up', flush=True)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "requested\n"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == EXIT_INTERRUPTED
    assert time.monotonic() - started < 5
    assert out == ""
    assert "Traceback" not in err


def test_a_second_interrupt_leaves_a_notebook_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested
        with pytest.raises(InterruptedRunError):
            signal.raise_signal(signal.SIGINT)


def test_a_thread_leaves_signals_to_the_main_thread() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    during: list[object] = []

    def work() -> None:
        with Interrupts() as interrupts:
            during.extend(signal.getsignal(number) for number in before)
            interrupts.raise_if_requested()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == list(before.values())
