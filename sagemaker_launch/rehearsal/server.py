"""The HTTP server: moto's application, and a few addresses that a test or a person steers the rehearsal with."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs

import boto3
from botocore.config import Config
from filelock import Timeout
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from lightning_modules.files import replaced_whole
from lightning_modules.locks import KernelLock
from sagemaker_launch.rehearsal import moto_urls
from sagemaker_launch.rehearsal.api import Regions, install
from sagemaker_launch.rehearsal.authorization import Account, Authorized
from sagemaker_launch.rehearsal.calls import CALL
from sagemaker_launch.rehearsal.endpoints.autoscaling import install_scaling
from sagemaker_launch.rehearsal.faults import Application, Faults, FaultSettings, FaultyApplication, json_answer
from sagemaker_launch.rehearsal.gate import Gate, answer_refused, check_is_user
from sagemaker_launch.rehearsal.iam import Access, install_iam
from sagemaker_launch.rehearsal.jobs.log_search import install_log_search
from sagemaker_launch.rehearsal.jobs.schedules import Clock, install_schedules
from sagemaker_launch.rehearsal.keys import ADMINISTRATOR, LAUNCHER, Keys
from sagemaker_launch.rehearsal.machine.namespaces import find_namespaces
from sagemaker_launch.rehearsal.machine.objects import Objects
from sagemaker_launch.rehearsal.machine.runner import Machine, Settings
from sagemaker_launch.rehearsal.machine.runtime import Runtime
from sagemaker_launch.rehearsal.machine.training_image import build_training_image
from sagemaker_launch.rehearsal.rehearsed import Rehearsed
from sagemaker_launch.rehearsal.signatures import RefusedRequestError
from sagemaker_launch.rehearsal.tag_index import install_tag_index
from sagemaker_launch.rehearse import ADMINISTRATOR as ADMINISTRATOR_PREFIX

REGION = "us-east-1"
"""Region of requests that name none."""

log = logging.getLogger(__name__)


IDLE_SECONDS = 30
"""A connection that sends nothing for so long is closed: each has a thread, and nobody needs a key to open one."""


class QuietHandler(MotoRequestHandler):
    """Omits werkzeug's log line per request, and closes idle connections."""

    timeout = IDLE_SECONDS

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


class Control:
    """The addresses below /rehearsal/, in front of moto."""

    def __init__(self, application: Application, regions: Regions, faults: Faults) -> None:
        self._application, self._regions, self._faults = application, regions, faults

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        path = environ.get("PATH_INFO", "").split("/")
        if path[1:2] != ["rehearsal"]:
            return self._application(environ, start_response)
        try:
            check_is_user(environ)
            answer = self._answer(environ["REQUEST_METHOD"], path[2:], parse_qs(environ.get("QUERY_STRING", "")))
        except RefusedRequestError as refused:
            return answer_refused(environ, start_response, refused)
        except ValueError as error:
            return json_answer(start_response, "409 Conflict", {"error": str(error)})
        return json_answer(start_response, "200 OK", answer)

    def _answer(self, method: str, path: list[str], query: dict[str, list[str]]) -> dict[str, Any]:
        if method == "POST" and len(path) == 2 and path[0] == "interrupt":
            at_once = query.get("signal", ["SIGTERM"]) == ["SIGKILL"]
            region = query.get("region", [REGION])[0]
            self._regions[region].interrupt(path[1], at_once)
            return {"interrupted": path[1]}
        if method == "POST" and path == ["faults"]:
            self._faults.set(FaultSettings.parse(",".join(f"{key}={values[0]}" for key, values in query.items())))
        if path == ["faults"]:
            return {"settings": asdict(self._faults.settings), "counts": self._faults.counts}
        raise ValueError(
            "known are POST /rehearsal/interrupt/JOB[?signal=SIGKILL][&region=REGION], GET /rehearsal/faults and "
            "POST /rehearsal/faults?rate=0.2&seed=1"
        )


class Server:
    """A running stand-in."""

    def __init__(
        self, settings: Settings, port: int, images: Path, use_namespaces: bool, fault_settings: FaultSettings
    ) -> None:
        """Take the root folder and the port, draw the keys, and build what jobs need.

        Raises:
            RuntimeError: if another server has the root folder, or the job image can't be built.
            ValueError: if jobs can't have the Python of the settings.
            OSError: if the port is taken.
        """
        self._settings = settings
        self._lock = KernelLock(settings.root / "server.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(f"another rehearsal runs on --root {settings.root}: stop it or name another") from error
        # Files of a server that was killed: their state is lost.
        (settings.root / "server.json").unlink(missing_ok=True)
        for kind in ("jobs", "endpoints"):
            shutil.rmtree(settings.root / kind, ignore_errors=True)
        namespaces = find_namespaces() if use_namespaces else None
        if namespaces is None:
            log.warning(
                "no Linux namespaces: jobs run below %s instead of /opt/ml, with the network and writable inputs",
                settings.root / "jobs",
            )
        if settings.serving_root is not None and (namespaces is None or not namespaces.root):
            raise RuntimeError(
                "--serving-root needs Linux namespaces made by root, who can become the image's user: leave it out, or "
                "start the rehearsal as root"
            )
        objects = Objects(settings.account, REGION, settings.root / "cache")
        # In memory and in the environment of processes only: jobs can read the files of this folder.
        self._keys = Keys(settings.account)
        access = objects.access = Access(settings.account)
        access.create_users(LAUNCHER, ADMINISTRATOR)
        image = build_training_image(images, settings.toolkit, settings.python)
        machine = Machine(settings, image, namespaces, objects, self._keys)
        self._links = TemporaryDirectory(prefix="rehearsal-", dir="/tmp")
        if namespaces is None:
            machine.links = Path(self._links.name)
        self._regions = Regions(machine)
        moto_urls.obey(CALL)
        install(self._regions)
        install_scaling(lambda region, name: self._regions[region].hosting.endpoints.get(name))
        install_schedules()
        install_iam()
        install_tag_index(self._regions)
        install_log_search()
        self._clock = Clock(self._regions, settings.account, machine.shutdown, self._as_role)
        faults = Faults(fault_settings)
        objects.delay, objects.skips_file = faults.delay, faults.skips_file
        moto = DomainDispatcherApplication(create_backend_app)
        runtime = Runtime(moto, self._regions.__getitem__, settings.account, objects)
        application = FaultyApplication(runtime, faults)
        authorized = Authorized(application, access, Account(settings.account, self._regions))
        gate = Gate(Control(Rehearsed(authorized), self._regions, faults), self._keys)
        self._http = make_server("127.0.0.1", port, gate, threaded=True, request_handler=QuietHandler)
        machine.url = self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, name="http")

    def environment(self) -> dict[str, str]:
        """What the user of the launcher needs to call this server and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            **self._keys.of(self._keys.launcher).environment(),
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
        }

    def administrator(self) -> dict[str, str]:
        """The key of the account's administrator, under names that no client reads by itself."""
        pair = self._keys.of(self._keys.administrator)
        return {f"{ADMINISTRATOR_PREFIX}{name}": value for name, value in pair.environment().items()}

    def _as_role(self, region: str, role: str) -> Any:
        """A client of this server that signs with the keys of a role."""
        pair = self._keys.of(role)
        session = boto3.Session(pair.access_key_id, pair.secret_access_key, region_name=region)
        return session.client("sagemaker", endpoint_url=self.url, config=Config(proxies={}))

    def start(self) -> None:
        """Serve, and write the address to a file."""
        self._thread.start()
        self._clock.start()
        note = self._settings.root / "server.json"
        with replaced_whole(note) as part:
            part.write_text(json.dumps({"url": self.url, "pid": os.getpid()}))

    def stop(self) -> None:
        """End all jobs and endpoints and stop serving."""
        self._regions.stop()
        self._clock.join()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._links.cleanup()
        (self._settings.root / "server.json").unlink()
        self._lock.release()
