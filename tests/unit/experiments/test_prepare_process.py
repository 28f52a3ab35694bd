"""Settings of a whole process are made by its entry point, not by what it calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config import RunConfig, load_config
from experiments.predict import evaluate_export
from experiments.single_run import train_and_register
from experiments.sweep import run_sweep
from sagemaker_launch.container import entry
from tests.conftest import REPOSITORY, tiny

TRAINING_PATH = (
    *("experiments/train.py", "experiments/task.py", "experiments/callbacks", "experiments/data"),
    *("experiments/runs/scoring.py", "lightning_modules"),
)
SETTINGS = r"os\.environ\[[^]]*\] *=[^=]|set_num_threads\(|mallopt|filterwarnings\(|prepare_process\(\)"


class Prepared(Exception):
    """Stops an entry point where it prepares its process."""


@pytest.mark.parametrize(
    ("module", "start"),
    [
        ("experiments.sweep", run_sweep),
        ("experiments.single_run", train_and_register),
        ("experiments.predict", lambda config: evaluate_export(config.output_dir, config, "test")),
        ("sagemaker_launch.container.entry", lambda _: entry.main()),
    ],
)
def test_each_entry_point_prepares_its_process_first(
    module: str, start: Callable[[RunConfig], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise Prepared

    monkeypatch.setattr(f"{module}.prepare_process", stop)
    with pytest.raises(Prepared):
        start(load_config(None, tiny(tmp_path / "photos", tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_the_training_path_changes_no_setting_of_the_process() -> None:
    paths = [REPOSITORY / name for name in TRAINING_PATH]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    assert len(files) > 30
    found = {str(file.relative_to(REPOSITORY)) for file in files if re.search(SETTINGS, file.read_text())}
    assert found == {"lightning_modules/process.py"}
