"""Twelve secrets are planted where users have them, and searched wherever the project writes or shows something.

Commands run as processes of their own, against a real MLflow server, which goes away, and a real PostgreSQL.
"""

from __future__ import annotations

import base64
import html
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import psycopg
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from experiments import cli
from experiments.study.storage import study_folder
from lightning_modules import redaction
from sagemaker_launch.shipping.bundle import shipped_files
from tests.conftest import REPOSITORY, tiny
from tests.integration.test_tracking_server import Server as MlflowServer
from tests.postgres import find_binaries, running_server
from tests.unit.lightning_modules.test_redaction import SPECIAL
from tests.warm import run_warm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Put together here, so that no scanner takes this file for a leak.
P = "pl4nted"
SECRETS = {
    "userinfo": f"{P}Userinfo1",
    "userinfo with @": f"{P}@Userinfo2",
    "?token=": f"{P}Token3",
    "?passwd=": f"{P}Passwd4",
    "?password=": f"{P}Password5",
    "?secret=": f"{P}Secret6",
    "databricks token": "dapi" + "0123456789abcdef" * 2,
    "MLflow basic auth": f"{P}Basic/Auth+8",
    "AWS secret key": f"{P}Key9/" + "x9Y8" * 7,
    "AWS session token": f"{P}Session10/" + "aB3+" * 20 + "==",
    "database password": f"{P}Db%40Word11",
    "presigned URL": f"{P}" + "0f1e2d3c" * 8,
}
AWAY = "127.0.0.1:1"
UNREACHABLE = {
    "userinfo": f"http://me:{SECRETS['userinfo']}@{AWAY}",
    "userinfo with @": f"http://me:{SECRETS['userinfo with @']}@{AWAY}/tools",
    "?token=": f"http://{AWAY}/?token={SECRETS['?token=']}",
    "?passwd=": f"http://{AWAY}/mlflow?x=1&passwd={SECRETS['?passwd=']}",
    "?password=": f"postgresql+psycopg://{AWAY}/db?user=me&password={SECRETS['?password=']}",
    "?secret=": f"https://{AWAY}/?SECRET={SECRETS['?secret=']}",
    "databricks token": f"databricks://token:{SECRETS['databricks token']}@{AWAY}",
    "database password": f"postgresql+psycopg://me:{SECRETS['database password']}@{AWAY}/mlflow",
    "presigned URL": f"https://{AWAY}/k?X-Amz-Credential=AK%2F2&X-Amz-Signature={SECRETS['presigned URL']}",
}
"""Servers and databases that do not answer."""
ENVIRONMENT = {
    "MLFLOW_TRACKING_USERNAME": "me",
    "MLFLOW_TRACKING_PASSWORD": SECRETS["MLflow basic auth"],
    "AWS_ACCESS_KEY_ID": "AKIA" + "Q3EXAMPLE7WXYZ12",
    "AWS_SECRET_ACCESS_KEY": SECRETS["AWS secret key"],
    "AWS_SESSION_TOKEN": SECRETS["AWS session token"],
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def forms(secret: str) -> set[str]:
    """A secret as a program may write it."""
    plain = {secret, unquote(secret)}
    encoded = {form for one in plain for form in (quote(one, safe=""), html.escape(one), json.dumps(one)[1:-1])}
    return plain | encoded | {base64.b64encode(f"me:{one}".encode()).decode() for one in plain}


class CommandLines(threading.Thread):
    """Reads the command lines of all processes of this machine, as each of its users can."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue  # it has ended


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    reader = CommandLines()
    reader.start()
    try:
        yield reader.seen
    finally:
        reader.ended.set()
        reader.join()


class Home:
    """A user's folder, in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, bytes] = {}
        """All that was shown or written, by where."""
        (folder / "tmp").mkdir(parents=True)
        self.environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(REPOSITORY)}

    def preset(self, values: Mapping[str, object]) -> Path:
        """A preset with the URLs and their passwords: there they belong."""
        nested: dict[str, Any] = {}
        for name, value in values.items():
            section, _, key = name.rpartition(".")
            target = nested.setdefault(section, {}) if section else nested
            target[key] = str(value) if isinstance(value, Path) else value
        path = self.folder / "preset.yaml"
        path.write_text(yaml.safe_dump(nested))
        return path

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a command, as a person does; its output goes to a file below `folder`."""
        command = [sys.executable, "-m", "experiments", *words]
        command += [] if "--from-best" in words else ["--config", str(self.folder / "preset.yaml")]
        with (self.folder / f"{name}.out").open("wb") as out:
            return subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, stdout=out, stderr=out)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text()

    def wait_for(self, process: subprocess.Popen[bytes], name: str, text: str) -> None:
        deadline = time.monotonic() + 300
        while text not in self.said(name):
            assert process.poll() is None, self.said(name)
            assert time.monotonic() < deadline, self.said(name)
            time.sleep(0.05)

    def collect(self) -> None:
        """Read all files of the folder but the preset."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name != "preset.yaml":
                self.places[str(path.relative_to(self.folder))] = path.read_bytes()


def rows(url: str) -> str:
    """All that a PostgreSQL database has."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return repr([connection.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Mapping[str, bytes]:
    """Where secrets may have come, after a sweep whose server goes away, a report, an export and `ui`."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    home = Home(tmp_path_factory.mktemp("home"))
    (home.folder / "server").mkdir()
    server = MlflowServer(home.folder / "server")
    server.start()
    with running_server(binaries) as database, command_lines() as seen:
        storage = database.url.replace(":secret@", f":{SECRETS['database password']}@")
        with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE DATABASE mlflow")
        of_mlflow = storage.removesuffix("postgres") + "mlflow"
        values = tiny(photos, home.folder / "runs") | {
            "tracking.uri": f"http://me:{SECRETS['userinfo with @']}@127.0.0.1:{server.port}",
            "tracking.flush_timeout_seconds": 3.0,
            "sweep.storage": storage,
            "sweep.workers": 2,
            "sweep.n_trials": 2,
            "trainer.max_epochs": 2,
        }
        home.preset(values)
        try:
            process = home.start("sweep", "sweep")
            home.wait_for(process, "sweep", "epoch 1")
            server.kill()
            assert process.wait(300) == 1 and "does not take the run" in home.said("sweep"), home.said("sweep")
            server.start()
            assert home.start("again", "sweep").wait(300) == 0, home.said("again")
        finally:
            server.kill()
        # Without a preset, the URLs come from the environment. It also writes the report of the study.
        home.environment |= {"EXPERIMENTS_TRACKING_URI": of_mlflow, "EXPERIMENTS_SWEEP_STORAGE": storage}
        words = ["train", "--from-best", "tiny", f"--output_dir={home.folder / 'runs'}"]
        assert home.start("to-database", *words).wait(300) == 0, home.said("to-database")
        home.preset(values | {"tracking.uri": of_mlflow})
        ui = home.start("ui", "ui", "--port", str(server.port))
        try:
            home.wait_for(ui, "ui", "MLflow at http")
        finally:
            ui.send_signal(signal.SIGTERM)
            ui.wait(60)
        home.places["Optuna's storage"] = rows(database.url).encode()
        home.places["MLflow's database"] = rows(of_mlflow).encode()
    home.collect()
    home.places["command lines"] = b"\n".join(seen)
    home.places |= {f"bundle: {name}": content for name, content in shipped_files().items()}
    return home.places


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_is_anywhere_after_a_sweep_whose_server_went_away(name: str, places: Mapping[str, bytes]) -> None:
    for place, content in places.items():
        for form in forms(SECRETS[name]):
            assert form.encode() not in content, f"{name} in {place}"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("sweep.out", "http://me:***@127.0.0.1"),
        ("runs/studies/tiny/trials/0000/run.json", '"tracking.uri": "http://me:***@127.0.0.1'),
        ("runs/studies/tiny/study.json", "postgresql+psycopg://tester:***@127.0.0.1"),
        ("runs/studies/tiny/report.html", "tiny"),
        ("runs/studies/tiny/worker-0.log", ""),
        ("server/mlflow.db", "http://me:***@127.0.0.1"),
        ("Optuna's storage", "postgresql+psycopg://tester:***@127.0.0.1"),
        ("MLflow's database", "postgresql+psycopg://tester:***@127.0.0.1"),
        ("ui.out", "MLflow at http://127.0.0.1"),
        ("command lines", "experiments\0ui"),
        ("bundle: experiments/train.py", "def train("),
    ],
)
def test_the_places_that_are_searched_are_the_right_ones(place: str, text: str, places: Mapping[str, bytes]) -> None:
    assert text.encode() in places[place]


def test_an_exported_model_names_no_secret(places: Mapping[str, bytes]) -> None:
    manifests = [content.decode() for place, content in places.items() if place.endswith("export/model.json")]
    assert len(manifests) >= 2
    assert all('"tracking.uri": "' in manifest and ":***@" in manifest for manifest in manifests)


@pytest.mark.parametrize("kind", UNREACHABLE)
@pytest.mark.parametrize("field", ["tracking.uri", "sweep.storage"])
def test_a_server_that_does_not_answer_is_named_without_its_secret(
    kind: str, field: str, photos: Path, tmp_path: Path
) -> None:
    home = Home(tmp_path)
    preset = home.preset(tiny(photos, tmp_path / "runs") | {field: UNREACHABLE[kind]})
    done = run_warm("experiments", ["sweep", "--config", str(preset), "--traceback"], environment=home.environment)
    assert done.returncode != 0
    home.collect()
    said = {"output": (done.stdout + done.stderr).encode(), **home.places}
    assert b"error: " in said["output"]
    for place, content in said.items():
        for form in forms(SECRETS[kind]):
            assert form.encode() not in content, f"{place}: {content.decode(errors='replace')[-2000:]}"


def test_a_request_of_a_job_has_no_secret_and_neither_has_a_query(photos: Path, tmp_path: Path) -> None:
    home = Home(tmp_path)
    urls = {"tracking.uri": UNREACHABLE["userinfo with @"], "sweep.storage": UNREACHABLE["database password"]}
    preset = home.preset(tiny(photos, tmp_path / "runs") | urls)
    cloud = ["--cloud", str(REPOSITORY / "conf/cloud/rehearsal.yaml"), "--cloud.region", "us-east-1"]
    dry = run_warm(
        "sagemaker_launch",
        ["tune", "--dry-run", "--config", str(preset), *cloud, "--price-per-hour", "1", "--cloud.budget_usd", "99"],
        environment=home.environment,
    )
    assert dry.returncode == 0 and '"HyperParameterTuningJobName"' in dry.stdout, dry.stderr
    photo = next(photos.rglob("*.png"), None) or next(photos.rglob("*.jpg"))
    asked = run_warm(
        "sagemaker_launch", ["query", str(photo), "--url", UNREACHABLE["presigned URL"]], environment=home.environment
    )
    assert asked.returncode == 1
    for output in (dry.stdout, dry.stderr, asked.stdout, asked.stderr):
        for secret in SECRETS.values():
            assert not any(form in output for form in forms(secret)), output


def test_the_log_of_a_bug_has_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sys, "argv", ["experiments", "sweep", "--tracking.uri", UNREACHABLE["userinfo with @"]])
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def fail() -> None:
        raise KeyError(f"{UNREACHABLE['?passwd=']} and {SECRETS['AWS session token']}")

    assert cli.run_command(fail, show_traceback=False) == 1
    (log,) = tmp_path.glob("experiments-*.log")
    for text in (log.read_text(), capsys.readouterr().err):
        assert "KeyError" in text
        assert not [name for name, secret in SECRETS.items() if any(form in text for form in forms(secret))]


PASSWORDS = st.one_of(SPECIAL, SPECIAL.map(lambda one: quote(one, safe="")))
URLS = st.sampled_from(
    [
        "http://me:{}@127.0.0.1:1",
        "http://127.0.0.1:1/?token={}",
        "HTTPS://127.0.0.1:1/x?a=1&PassWd={}",
        "postgresql+psycopg://me:{}@127.0.0.1:1/db",
        "postgresql+psycopg://127.0.0.1:1/db?user=me&pass%77ord={}",
        "databricks://token:{}@127.0.0.1:1",
        "databricks://scope:{}",
        "mysql://me:{}@127.0.0.1:1/db",
        "nonsense://me:{}@127.0.0.1:1/db",
        "me:{}@127.0.0.1:1",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(url=URLS, password=PASSWORDS, field=st.sampled_from(["--tracking.uri", "--sweep.storage"]))
def test_no_command_shows_a_password_of_any_letters(
    url: str, password: str, field: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assume(not ("?" in url and set(password) & set("&#")))  # they end a parameter: the rest is another one
    redaction._remembered.clear()
    fields = {**tiny(photos, tmp_path), "tracking.flush_timeout_seconds": 0.5}
    words = [f"--{name}={value}" for name, value in fields.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        code = cli.main(["sweep", *words, field, url.format(password)])
    said = capsys.readouterr()
    assert code != 0
    for form in {password, unquote(password), repr(unquote(password))[1:-1]}:
        assert form not in said.out + said.err, said.err
    assert not study_folder(cli.load_config(None, fields)).exists() or field == "--sweep.storage"
