"""Variables, folders and files of others around a run do not change what it does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.rank_zero import rank_zero_only
from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from experiments.config import load_config, sqlite_url, to_yaml, tracking_uri
from experiments.runs.environment import own_environment
from experiments.runs.folder import RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.study.workers import visible_gpus
from experiments.train import train
from lightning_modules.launchers import OneProcess, cluster_environment, is_first_process
from tests.conftest import REPOSITORY, tiny

NOWHERE = "http://127.0.0.1:9"
LAUNCHERS = {
    **{"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", "NODE_RANK": "1", "GROUP_RANK": "1"},
    **{"MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"},
    **{"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "dogs", "SLURM_PROCID": "2"},
    **{"SLURM_LOCALID": "2", "SLURM_NODEID": "1", "SLURM_NODELIST": "nowhere", "SLURM_NNODES": "3"},
    **{"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nonexistent"},
    **{"JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_LOCAL_RANK": "2"},
}
MLFLOW = {
    **{"MLFLOW_TRACKING_URI": NOWHERE, "MLFLOW_REGISTRY_URI": NOWHERE, "MLFLOW_EXPERIMENT_NAME": "other"},
    **{"MLFLOW_EXPERIMENT_ID": "77", "MLFLOW_RUN_ID": "0" * 32, "MLFLOW_ACTIVE_MODEL_ID": "m-1"},
    **{"MLFLOW_ENABLE_ASYNC_LOGGING": "true", "MLFLOW_DEFAULT_ARTIFACT_ROOT": "/nonexistent"},
}
PROXIES = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), NOWHERE)
OTHERS = {
    **{"NO_COLOR": "1", "LANG": "C", "LC_ALL": "C", "TZ": "Pacific/Kiritimati"},
    **{"MPLBACKEND": "no backend", "GIT_DIR": "/nonexistent"},
}
ODD = "a b?c%20d#ü"
"""A folder's name that means something else in a URL."""


@pytest.fixture(autouse=True)
def _rank_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)


@pytest.mark.slow
def test_a_train_and_a_sweep_in_a_hostile_environment_and_path(
    photos: Path, mlflow_database: Path, tmp_path: Path
) -> None:
    home = tmp_path / ODD
    shutil.copytree(photos, home / f"photos {ODD}")
    (home / "runs").mkdir()
    shutil.copy(mlflow_database, home / "runs" / "mlflow.db")
    fields = {
        **tiny(home / f"photos {ODD}", home / "runs"),
        **{"trainer.max_epochs": 1, "sweep.n_trials": 1, "tracking.flush_timeout_seconds": 60},
    }
    code = (
        "import sys\n"
        "from experiments.cli import main\n"
        "print('train', main(['train', *sys.argv[2:]]), 'sweep', main(['sweep', *sys.argv[2:]]))\n"
        "print('predict', main(['predict', 'photo.png', '--model', *sys.argv[1:]]))\n"
    )
    shutil.copy(next(photos.glob("test/*/*")), home / "photo.png")
    environment = os.environ | LAUNCHERS | MLFLOW | PROXIES | OTHERS | {"PYTHONPATH": str(REPOSITORY)}
    config = load_config(None, fields)
    (home / "all.yaml").write_text(to_yaml(config))
    done = subprocess.run(
        [sys.executable, "-c", code, f"models:/photos {ODD}@champion", "--config", "all.yaml"],
        cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert "train 0 sweep 0" in done.stdout, done.stderr
    assert "predict 0" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr

    runs = [*home.glob("runs/train/*/run.json"), *home.glob("runs/studies/tiny/trials/*/run.json")]
    assert len(runs) == 2
    client = MlflowClient(tracking_uri(config))
    for noted in runs:
        folder = RunFolder(noted.parent)
        assert len(folder.metric_lines()) == 1
        assert len(folder.read().tags["mlflow.source.git.commit"]) == 40
        sent = client.get_run(folder.run_id or "")
        assert sent.data.metrics["val_loss"] == folder.curves()["val_loss"][1]
        assert client.list_artifacts(sent.info.run_id)
    assert {path.name for path in home.iterdir()} == {f"photos {ODD}", "photo.png", "all.yaml", "runs"}
    assert {path.name for path in tmp_path.iterdir()} == {ODD}, "nothing beside it"


@pytest.mark.parametrize("name", ["plain", "with space", "what?", "a%20b", "#1", "jürgen", "a=b&c;d", "C:x"])
def test_the_url_of_a_database_names_its_file_and_lets_mlflow_create_no_other(tmp_path: Path, name: str) -> None:
    from mlflow.store.db.utils import _make_parent_dirs_if_sqlite

    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    url = sqlite_url(path)
    assert make_url(url).database == str(path)
    _make_parent_dirs_if_sqlite(url)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_process_reads_no_variable_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {**LAUNCHERS, "TORCHELASTIC_RUN_ID": "x", "STANDALONE_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(rank_zero_only, "rank", 2)  # as Lightning has it after its import with these variables
    assert is_first_process(1)
    assert not is_first_process(2)
    environment = cluster_environment(1)
    assert isinstance(environment, OneProcess)
    assert rank_zero_only.rank == 0
    assert (environment.global_rank(), environment.local_rank(), environment.node_rank()) == (0, 0, 0)
    assert environment.world_size() == 1
    assert not environment.creates_processes_externally
    assert environment.main_address == "127.0.0.1"
    environment.teardown()
    assert os.environ["WORLD_SIZE"] == "4", "another program's"


def test_several_processes_follow_their_launcher_and_requeue_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_environment(2) is None
    for key, value in {**LAUNCHERS, "SLURM_NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(key, value)
    of_srun = cluster_environment(4)
    assert isinstance(of_srun, SLURMEnvironment)
    assert not of_srun.auto_requeue
    assert of_srun.global_rank() == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert cluster_environment(4) is None, "torchrun in a Slurm job"


def test_a_checkpoint_that_slurm_left_in_the_folder_is_not_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 7):
        (tmp_path / f"hpc_ckpt_{number}.ckpt").write_bytes(b"of another run")
    for key, value in LAUNCHERS.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(rank_zero_only, "rank", 2)
    before = signal.getsignal(signal.SIGUSR1)
    config = load_config(None, tiny(photos, tmp_path / "runs") | {"trainer.max_epochs": 2})
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    result = train(config, output_dir=folder.path, logger=RunFolderLogger(folder))
    assert sorted(result.history) == [1, 2]
    assert [line.step for line in folder.metric_lines()] == [1, 2]
    assert signal.getsignal(signal.SIGUSR1) is before
    assert {path.name for path in tmp_path.glob("*ckpt*")} == {"hpc_ckpt_1.ckpt", "hpc_ckpt_7.ckpt"}


@pytest.mark.parametrize(
    ("named", "count", "gpus"),
    [
        (None, 0, []),
        (None, 4, ["0", "1", "2", "3"]),
        ("2,3", 2, ["2", "3"]),
        (" 3 , 1 ", 2, ["3", "1"]),
        ("0,-1,1", 1, ["0"]),  # CUDA stops at the first name that it does not know
        ("", 0, []),
        ("MIG-0a,MIG-0b", 2, ["MIG-0a", "MIG-0b"]),
        ("GPU-8932f937,GPU-1c,GPU-2d", 3, ["GPU-8932f937", "GPU-1c", "GPU-2d"]),
    ],
)
def test_workers_share_the_gpus_that_the_caller_may_use(
    monkeypatch: pytest.MonkeyPatch, named: str | None, count: int, gpus: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert visible_gpus() == gpus


def test_no_proxy_leads_back_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intern.example")
    monkeypatch.delenv("no_proxy", raising=False)
    own = own_environment()
    assert own["NO_PROXY"] == "intern.example,127.0.0.1,localhost,::1"
    assert own["no_proxy"] == "127.0.0.1,localhost,::1"
    monkeypatch.setenv("NO_PROXY", own["NO_PROXY"])
    assert own_environment()["NO_PROXY"] == own["NO_PROXY"], "said once"


@pytest.mark.parametrize("name", [*MLFLOW, "GIT_DIR"])
def test_variables_that_would_move_a_run_are_taken_away(name: str) -> None:
    assert own_environment()[name] is None


@pytest.mark.parametrize(("rank", "own"), [("2", "inherited"), ("", None), ("worker-2", None), ("-1", None)])
def test_a_rank_that_is_no_number_is_taken_away(monkeypatch: pytest.MonkeyPatch, rank: str, own: str | None) -> None:
    monkeypatch.setenv("SLURM_PROCID", rank)
    assert own_environment().get("SLURM_PROCID", "inherited") == own


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 12345"), OSError("No username set")])
def test_a_user_without_name_and_home_has_both(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def no_user() -> str:
        raise error  # Python's own, before and since 3.13

    monkeypatch.setattr("getpass.getuser", no_user)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    own = own_environment()
    assert own["LOGNAME"] == f"uid-{os.getuid()}"
    assert own["HOME"] == "/nonexistent"
    assert own["MPLCONFIGDIR"] is not None and "matplotlib-" in own["MPLCONFIGDIR"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_processes_that_a_launcher_starts_train_one_run(
    photos: Path, mlflow_database: Path, tmp_path: Path, launcher: str
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(mlflow_database, runs / "mlflow.db")
    fields = {**tiny(photos, runs), "trainer.max_epochs": 1, "trainer.devices": 2}
    (tmp_path / "all.yaml").write_text(to_yaml(load_config(None, fields)))
    variables = {
        "torchrun": {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "x"},
        "srun": {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1"},
    }[launcher]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables["MASTER_PORT"] = str(free.getsockname()[1])
    names = {"torchrun": ("RANK", "LOCAL_RANK"), "srun": ("SLURM_PROCID", "SLURM_LOCALID")}[launcher]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments", "train", "--config", str(tmp_path / "all.yaml")],
            cwd=REPOSITORY,
            env=os.environ | variables | dict.fromkeys(names, str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (1, 0)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    [noted] = (runs / "train").glob("*/run.json")
    assert len(RunFolder(noted.parent).metric_lines()) == 1
