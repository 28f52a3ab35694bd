"""Shared fixtures: a learnable data set of a few dozen tiny pictures and a run that trains on it in seconds."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.process_state import process_state as process_state
from tests.shared_run import Keeper, SharedRun
from tests.worker_deaths import pytest_testnodedown as pytest_testnodedown

if TYPE_CHECKING:
    from sagemaker_launch.rehearsal.endpoints.aws_server import AwsServer
    from sagemaker_launch.rehearsal.machine.image import Contents, Image
    from sagemaker_launch.rehearsal.machine.namespaces import Namespaces

# Before torch is imported, here and in the processes that tests start. Tiny networks gain nothing from a second thread,
# and wait long for one that another process, such as the publisher, keeps off its core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# scikit-learn's joblib warns where /dev/shm is not writable.
os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")
# As in `ui`: MLflow's server starts eight more processes for jobs that nothing here gives it.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

REPOSITORY = Path(__file__).resolve().parent.parent
# Real photos and weights are not part of the project: tests that need them are skipped where they are absent.
REAL_DATA = Path(os.environ.get("EXPERIMENTS_TEST_DATA", REPOSITORY.parent / "shared"))
# The environment of rehearsed jobs is made once for all runs of the tests: half a minute, and the package index.
JOB_IMAGES = REPOSITORY / "runs" / "rehearsal-image"
# Options of a rehearsal that uses it. The Python of AWS's image would cost gigabytes and minutes.
IMAGE_OPTIONS = ("--images", str(JOB_IMAGES), "--python", sys.executable)
# The files that take longest, longest first. `make test` hands out files in this order, so none of these is the last
# one to run while the other process waits. A file that is missing here costs that wait and nothing else.
LONGEST = (
    "integration/test_sweep.py",
    "integration/test_time_limits.py",
    "e2e/test_notebook.py",
    "integration/test_kills.py",
    "e2e/test_cloud.py",
    "cases/test_a_study_is_its_own.py",
    "e2e/test_endpoints.py",
    "integration/test_readme.py",
    "integration/test_interrupt.py",
    "integration/test_publishing.py",
    "integration/test_serving.py",
    "integration/test_recorder.py",
    "integration/test_tracking_server.py",
    "integration/test_commands.py",
    "integration/test_debugger.py",
    "integration/test_rehearsal_endpoints.py",
    "integration/test_publisher.py",
    "integration/test_postgres.py",
    "integration/test_rehearsal.py",
    "integration/test_ray_serve.py",
    "integration/test_torchserve.py",
)
KEEPER = pytest.StashKey[Keeper]()
FAULTS = pytest.StashKey[list[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the run that all processes of `pytest -n 2` share."""
    # A shell makes what it starts in the background ignore Ctrl-C, and so would each process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(session.config, "workerinput"):
        # As xdist does, which puts the folders of its processes there.
        folder: Path = session.config._tmp_path_factory.getbasetemp()
        session.config.stash[KEEPER] = Keeper(folder / "shared")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End it, and fail if something expensive was built twice or a process is left."""
    if KEEPER in session.config.stash:
        session.config.stash[FAULTS] = session.config.stash[KEEPER].end()
        if session.config.stash[FAULTS]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say so."""
    for fault in config.stash.get(FAULTS, []):
        terminalreporter.write_line(f"FAILED {fault}", red=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first, which fail in seconds; then the longest files, so that no process waits for another one."""

    def order(item: pytest.Item) -> tuple[bool, int]:
        name = f"{item.path.parent.name}/{item.path.name}"
        is_unit = item.path.is_relative_to(REPOSITORY / "tests" / "unit")
        return not is_unit, LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=order)


@pytest.fixture(scope="session", autouse=True)
def warm_processes() -> None:
    """What the code under test starts needs not import PyTorch and MLflow again, which takes four seconds each time."""
    from experiments.runs import processes
    from tests.warm import WarmContext

    processes.CONTEXT = WarmContext()  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def secrets() -> Iterator[None]:
    """The passwords of a test's URLs, such as `secret`, would be replaced in the messages of the next test."""
    from lightning_modules import redaction

    before = redaction.remembered()
    yield
    redaction._remembered.intersection_update(before)


@pytest.fixture(autouse=True)
def aws_session(process_state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 keeps the credentials of the first test, which another rehearsal does not know."""
    if "boto3" in sys.modules:
        monkeypatch.setattr(sys.modules["boto3"], "DEFAULT_SESSION", None)


@pytest.fixture(autouse=True)
def variables() -> Iterator[None]:
    """Commands that run in this process set variables of it, which the next test would find."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def own_threads() -> Iterator[None]:
    """For a test that sets how many threads PyTorch uses."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_run() -> SharedRun:
    """What all processes of this run of the tests share."""
    return SharedRun.current()


@pytest.fixture(scope="session")
def job_images(shared_run: SharedRun) -> Path:
    """Where that environment is, or a skip where AWS's container toolkit, which has a part in C, can't be built."""
    from sagemaker_launch.rehearsal.machine.training_image import build_training_image
    from sagemaker_launch.rehearse import TOOLKITS

    if shutil.which("cc") is None and not any(JOB_IMAGES.glob("*/complete")):
        pytest.skip("needs a C compiler (Debian: gcc libc6-dev), with which AWS's container toolkit is built")

    def build(_: Path) -> None:
        shared_run.note_build("environment of jobs")
        build_training_image(JOB_IMAGES, TOOLKITS[0], Path(sys.executable))

    shared_run.build_once("environment-of-jobs", build)
    return JOB_IMAGES


@pytest.fixture(scope="session")
def default_job_images(job_images: Path, shared_run: SharedRun) -> Path:
    """The same folder, with the environment that a rehearsal without options has: minutes and 3 GB, once."""
    from sagemaker_launch.rehearsal.machine.training_image import build_training_image
    from sagemaker_launch.rehearse import TOOLKITS

    def build(_: Path) -> None:
        build_training_image(job_images, TOOLKITS[0], None)

    shared_run.build_once("default-environment-of-jobs", build)
    return job_images


@pytest.fixture(scope="session")
def smdebug_environment(shared_run: SharedRun) -> None:
    """smdebug in JOB_IMAGES: its environment for reading tensors, and its wheel for jobs."""
    from sagemaker_launch.debugger.environment import debugger_python
    from sagemaker_launch.shipping.bundle import fetch_debugger

    def build(_: Path) -> None:
        shared_run.note_build("environment of smdebug")
        debugger_python(JOB_IMAGES)
        fetch_debugger(JOB_IMAGES)

    shared_run.build_once("environment-of-smdebug", build)


@pytest.fixture(scope="session")
def start_torchserve(shared_run: SharedRun) -> Callable[..., AwsServer]:
    """Starts AWS's container with TorchServe in a folder of its own on a model folder, or a skip where that can't be.

    More variables of the container may be a third argument.
    """
    from sagemaker_launch.rehearsal.endpoints import torchserve

    if shutil.which("java") is None:
        pytest.skip("needs Java (Debian: default-jre-headless), in which TorchServe is written")
    image, namespaces = _inference_image(shared_run, "torchserve", torchserve.contents())
    return lambda tree, model, *environment: torchserve.start(tree, model, image, namespaces, *environment)


@pytest.fixture(scope="session")
def start_ray_serve(shared_run: SharedRun) -> Callable[..., AwsServer]:
    """The same of AWS's container with Ray Serve."""
    from sagemaker_launch.rehearsal.endpoints import ray_serve
    from sagemaker_launch.rehearsal.machine.namespaces import find_namespaces

    namespaces = find_namespaces()
    if namespaces is None or not namespaces.root or shutil.which("curl") is None:
        pytest.skip("needs curl, and root to give the container a network of its own")
    image, namespaces = _inference_image(shared_run, "ray-serve", ray_serve.contents())
    return lambda tree, model, *environment: ray_serve.start(tree, model, image, namespaces, *environment)


def _inference_image(shared_run: SharedRun, name: str, contents: Contents) -> tuple[Image, Namespaces]:
    """One of AWS's inference images in JOB_IMAGES, and namespaces for its containers."""
    from sagemaker_launch.rehearsal.machine.image import Interpreter, build_image
    from sagemaker_launch.rehearsal.machine.namespaces import find_namespaces

    namespaces = find_namespaces()
    if namespaces is None:
        pytest.skip("needs Linux namespaces: AWS's containers write to /etc and see the whole machine's processes")

    def build(_: Path) -> None:
        shared_run.note_build(f"environment of {name}")
        build_image(JOB_IMAGES, contents, own)

    own = Interpreter.ask(Path(sys.executable))
    shared_run.build_once(f"environment-of-{name}", build)
    return build_image(JOB_IMAGES, contents, own), namespaces


@pytest.fixture(scope="session")
def photos(shared_run: SharedRun) -> Path:
    """Three classes of tiny pictures that colour tells apart, in the dogImages layout."""
    from tests.pictures import make_class_folders

    def build(folder: Path) -> None:
        shared_run.note_build("photos")
        split = {"train": 8, "valid": 4, "test": 4}
        make_class_folders(folder / "photos", classes=3, per_class=split, size=24, seed=0)

    return shared_run.build_once("photos", build) / "photos"


@pytest.fixture(scope="session")
def mlflow_database(shared_run: SharedRun) -> Path:
    """An empty MLflow database: a sweep that finds a copy of it saves the seconds of its migrations."""
    from mlflow import MlflowClient

    def build(folder: Path) -> None:
        shared_run.note_build("MLflow database")
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return shared_run.build_once("mlflow-database", build) / "mlflow.db"


@pytest.fixture
def unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps without MLflow, where it is not the subject: its process takes four seconds of processor time."""
    from tests.unpublished import NoPublisher

    monkeypatch.setattr("experiments.sweep.Publisher", NoPublisher)


def tiny(photos: Path, output_dir: Path) -> dict[str, object]:
    """Overrides for a run of a second: the head of a small network with random weights."""
    return {
        "data.name": "folder",
        "data.root": photos,
        "data.cache_dir": output_dir / "cache",
        "data.image_size": 32,
        "data.crop_fraction": 1.0,
        "data.batch_size": 8,
        "data.augment": "none",
        "model.backbone": "shufflenet_v2_x0_5",
        "model.weights": "none",
        "optimizer.learning_rate": 0.01,
        "trainer.max_epochs": 3,
        "trainer.early_stopping_patience": 0,
        "trainer.accelerator": "cpu",
        "output_dir": output_dir,
        "search": REPOSITORY / "conf" / "search" / "quick.yaml",
        "sweep.study_name": "tiny",
        "sweep.n_trials": 3,
        "sweep.population": 1,  # each trial goes through train(), with checkpoints
        "sweep.pruner": "none",
    }


def own_flags(command: str, flags: Iterable[str]) -> list[str]:
    """Those of some flags whose field a command uses; it refuses the others.

    Args:
        command: as fields declare it, such as `train` or `cloud train`.
        flags: in the form --name=value; other words are kept.
    """
    # Not at the top: tests of what imports what look at this process, too.
    from experiments.config import RunConfig
    from experiments.fields import fields_of
    from sagemaker_launch.settings.cloud import CloudSettings

    known = {**fields_of(RunConfig), **fields_of(CloudSettings, "cloud.")}
    names = {flag: known.get(flag.removeprefix("--").partition("=")[0]) for flag in flags}
    return [flag for flag, field in names.items() if field is None or field.is_used_by([command])]


def real(name: str) -> Path:
    """A file or folder of real data, or a skip that says why."""
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}: set EXPERIMENTS_TEST_DATA to a folder that holds {name}")
    return path
