"""What happens to a command's output decides nothing: a pipe or terminal that goes, a full disk, an encoding."""

from __future__ import annotations

import errno
import os
import pty
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import single_run as training
from experiments.config import load_config
from experiments.console import guard_output, say
from experiments.interrupts import Interrupts
from tests.conftest import REPOSITORY, tiny
from tests.unpublished import NoPublisher

WRITES = """
import sys
from tqdm import tqdm
from experiments.console import guard_output, say
guard_output()
print("begin", flush=True)
sys.stdin.readline()  # by now the reader has left
for number in range(3):
    print("result", number)
    say(f"line {number}")
    sys.stderr.write("from a library\\n" * 1000)
    sys.stdout.flush()
with tqdm(total=3, file=sys.stderr) as bar:
    bar.update()
with open(sys.argv[1], "w") as file:
    file.write("done")
"""


def write_after(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    """Let WRITES go on and wait until it has done its work."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert (tmp_path / "done").read_text() == "done"


def start(tmp_path: Path, redirection: str, **options: object) -> subprocess.Popen[str]:
    (tmp_path / "writes.py").write_text(WRITES)
    words = shlex.join([sys.executable, str(tmp_path / "writes.py"), str(tmp_path / "done")])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(  # type: ignore[call-overload]
        ["sh", "-c", f"exec {words} {redirection}"], stdin=subprocess.PIPE, text=True, env=environment, **options
    )


def test_work_continues_when_the_pipe_is_closed(tmp_path: Path) -> None:
    process = start(tmp_path, "2>&1", stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    process.stdout.close()  # head -1
    write_after(tmp_path, process)


def test_work_continues_when_the_terminal_is_gone(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(tmp_path, "", stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert os.read(ours, 5) == b"begin"
    os.close(ours)
    write_after(tmp_path, process)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_work_continues_when_the_log_is_on_a_full_disk(tmp_path: Path) -> None:
    write_after(tmp_path, start(tmp_path, ">/dev/full 2>&1"))


def test_work_continues_when_the_output_was_closed_from_the_start(tmp_path: Path) -> None:
    write_after(tmp_path, start(tmp_path, ">&- 2>&-"))


def test_a_stream_of_a_caller_that_fails_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    say("a line")


def test_a_name_that_the_terminal_cannot_show_is_escaped() -> None:
    code = "from experiments.console import guard_output; guard_output(); print('Köter', '柴犬', '\\udce4')"
    for encoding, shown in (("ascii", "K\\xf6ter \\u67f4\\u72ac \\udce4"), ("latin-1", "Köter \\u67f4\\u72ac \\udce4")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.stdout.decode(encoding).strip() == shown


def test_a_bug_report_takes_any_character() -> None:
    code = "from experiments.cli import bug_report; print(bug_report(ValueError('\\u67f4 \\udce4')))"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        capture_output=True,
        check=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "LC_ALL": "en_US.ISO-8859-1", "PYTHONCOERCECLOCALE": "0"},
    )
    log = Path(done.stdout.partition("The log is ")[2].partition(": please")[0])
    assert "ValueError: 柴 \\udce4" in log.read_text(encoding="utf-8")
    log.unlink()


def test_a_signal_whose_line_nobody_reads_still_asks_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(number: int, data: bytes) -> int:
        raise BrokenPipeError(number, data)

    with Interrupts() as interrupts:
        monkeypatch.setattr(os, "write", gone)
        signal.raise_signal(signal.SIGINT)
        assert interrupts.requested


def test_a_run_whose_lines_nobody_reads_is_complete(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            raise BrokenPipeError

        flush = isatty

    monkeypatch.setattr(training, "Publisher", NoPublisher)
    monkeypatch.setattr(sys, "stderr", Gone())
    config = load_config(None, tiny(photos, tmp_path) | {"trainer.max_epochs": 1})
    outcome = training.train_run(config, training.run_path_prefix(config), "train", {}).outcome
    assert outcome is not None and outcome.state == "COMPLETE"


def test_both_programs_outlive_their_output() -> None:
    for program in ("experiments", "sagemaker_launch"):
        source = (REPOSITORY / program / "__main__.py").read_text()
        assert f"    {guard_output.__name__}()\n" in source
