"""The walk-through notebook: as it is committed, and from top to bottom against the rehearsal."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pprint
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

from experiments.config import load_config, to_yaml
from tests.conftest import REPOSITORY, tiny

NOTEBOOK = REPOSITORY / "experiments" / "train_and_deploy.ipynb"
OURS = ("experiments", "lightning_modules", "sagemaker_launch")
LOSS = "CrossEntropyLoss_output_0"
DEBUGGER = {"debugger.enabled": True, "debugger.gradients_every": 2, "debugger.weights_every": 2}


def read_notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def test_it_is_committed_without_outputs() -> None:
    for cell in code_cells(read_notebook()).values():
        assert (cell.outputs, cell.execution_count) == ([], None), cell.id


def test_one_cell_holds_the_settings() -> None:
    cells = code_cells(read_notebook()).values()
    assert [cell.id for cell in cells if "parameters" in cell.metadata.get("tags", [])] == ["settings"]


def test_its_code_is_short_and_calls_public_functions_only() -> None:
    for name, cell in code_cells(read_notebook()).items():
        assert not [line for line in cell.source.splitlines() if line.lstrip().startswith(("!", "%"))], name
        nodes = list(ast.walk(ast.parse(cell.source)))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert "subprocess" not in imported, name
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(OURS):
                public = importlib.import_module(str(node.module)).__all__
                assert {alias.name for alias in node.names} <= {*public}, name
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {
            alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        private = {name for name in used if name.startswith("_") and not name.endswith("__")}
        assert not private | used & {"system", "popen", "run_line_magic", "run_cell_magic"}, name
        assert name in ("settings", "prepare", "imports") or len(cell.source.splitlines()) <= 8, name


def test_its_calls_fit_the_functions(tmp_path: Path) -> None:
    code = tmp_path / "walk_through.py"
    code.write_text("\n".join(cell.source for cell in code_cells(read_notebook()).values()))
    # As `make lint` calls it, so that its cache spares the types of all libraries.
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert checked.stdout.splitlines()[-1].startswith("Found "), checked
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    # A notebook need not say that something may be None, and IPython has no types.
    beside = ("[arg-type]", "[assignment]", "[no-untyped-call]", "[union-attr]")
    assert [line for line in errors if not line.endswith(beside)] == []


def test_a_step_says_what_it_does_before_it_does_it() -> None:
    cell_types = [cell.cell_type for cell in read_notebook().cells]
    assert cell_types[0] == "markdown"
    # Of code cells at most two follow one another after the settings and the imports.
    assert ["code"] * 3 not in [cell_types[at : at + 3] for at in range(4, len(cell_types))]


@pytest.fixture
def home(
    photos: Path,
    default_job_images: Path,
    smdebug_environment: None,
    mlflow_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder for all that a run of the notebook writes, with what takes long to build."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    for folder in (tmp_path / "cache", tmp_path / "rehearsal"):
        folder.mkdir()
        for built in default_job_images.iterdir():
            if built.is_dir():
                (folder / built.name).symlink_to(built)
    jupyter = tmp_path / "jupyter"
    kernel = jupyter / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(jupyter))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def with_settings(notebook: NotebookNode, photos: Path, home: Path) -> NotebookNode:
    """The notebook with settings for trainings of seconds."""
    space = home / "space.yaml"
    space.write_text("optimizer.learning_rate: {type: float, low: 1.0e-3, high: 2.0e-2, log: true}\n")
    values = tiny(photos, home) | {"search": space, "tracking.experiment": "walk-through"}
    preset = home / "preset.yaml"
    preset.write_text(to_yaml(load_config(None, values)))
    settings = {
        "PRESET": str(preset),
        "OVERRIDES": {"sweep.n_trials": 2},
        "REHEARSE": True,
        "CLOUD": "conf/cloud/rehearsal.yaml",
        "CLOUD_OVERRIDES": {"max_parallel_jobs": 2},
        "DEBUGGER": DEBUGGER,
        "ENDPOINT": "walk-through",
        "PHOTO": None,
    }
    cell = code_cells(notebook)["settings"]
    names = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
    assert names == settings.keys()
    cell.source = "\n".join(f"{name} = {pprint.pformat(value)}" for name, value in settings.items())
    return notebook


def run(notebook: NotebookNode, home: Path) -> None:
    NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(home)}}).execute()


def left_by(home: Path) -> list[str]:
    """Processes that have to do with a folder, once they have had a while to end."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = []
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), *process.environ().values()]
            except psutil.Error:  # gone, or not ours to look at
                continue
            if process.pid != os.getpid() and any(str(home) in word for word in words):
                left.append(f"{process.pid} {' '.join(process.cmdline())}")
        if not left:
            break
        time.sleep(0.3)
    return left


def stream_text(cell: NotebookNode, stream: str = "stdout") -> str:
    """What a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == stream)


def shown(cell: NotebookNode, mime_type: str) -> list[str]:
    """What a cell shows, by MIME type."""
    return [output.data[mime_type] for output in cell.outputs if "data" in output and mime_type in output.data]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_against_the_rehearsal(home: Path, photos: Path) -> None:
    notebook = with_settings(read_notebook(), photos, home)
    run(notebook, home)
    cells = code_cells(notebook)
    for name in ("look", "course", "losses", "profile", "ask"):
        assert shown(cells[name], "image/png"), name
    assert len(shown(cells["figures"], "application/vnd.plotly.v1+json")) == 2, (
        "JupyterLab shows it by plotly's extension"
    )
    (attempts,) = shown(cells["attempts"], "text/plain")
    assert attempts.count(" local ") == attempts.count(" rehearsal ") == 2
    assert LOSS in json.loads(next(home.rglob("debug.json")).read_text())["losses"]
    (rules,) = shown(cells["rules"], "text/plain")
    assert "LossNotDecreasing" in rules
    assert "of the step" in stream_text(cells["profile"])
    answer = stream_text(cells["ask"])
    assert "(is Class1)" in answer and "with a known name are right" in answer
    assert "deleted: endpoint walk-through" in stream_text(cells["delete"])
    assert "0 jobs and 0 endpoints run, $0.00 an hour" in stream_text(cells["delete"])
    assert [name for name, cell in cells.items() if "Warning" in stream_text(cell, "stderr")] == []
    assert not any((REPOSITORY / name).exists() for name in ("mlruns", "mlartifacts", "mlflow.db", "lightning_logs"))
    assert left_by(home) == []


@pytest.mark.slow
def test_the_rehearsal_ends_with_a_kernel_that_dies(home: Path, photos: Path) -> None:
    notebook = with_settings(read_notebook(), photos, home)
    last = [cell.id for cell in notebook.cells].index("account")
    skipped = ("look", "space", "search", "figures")
    kill = nbformat.v4.new_code_cell("print(running.process.pid, flush=True)\nos.kill(os.getpid(), 9)")
    notebook.cells = [*(cell for cell in notebook.cells[: last + 1] if cell.id not in skipped), kill]
    with pytest.raises(DeadKernelError):
        run(notebook, home)
    assert left_by(home) == []
