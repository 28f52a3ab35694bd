"""Runs one endpoint, from its first process to its last, in its own thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint, Fleet, Request
from sagemaker_launch.rehearsal.endpoints.invocations import TIMEOUT_SECONDS
from sagemaker_launch.rehearsal.endpoints.rollout import RollbackError, Rollout
from sagemaker_launch.rehearsal.endpoints.serving_process import POLL_SECONDS, STOP_SECONDS, UnhealthyError
from sagemaker_launch.rehearsal.machine.objects import DataError
from sagemaker_launch.rehearsal.machine.runner import Machine

RESTART_SECONDS = 1.0
"""Seconds before an ended container is restarted."""
START_ERRORS = (DataError, UnhealthyError, OSError)
"""Errors with which a container does not start; OSError: of this machine, such as a full disk."""

log = logging.getLogger(__name__)


class EndpointRunner(threading.Thread):
    """Starts, watches, replaces and ends the processes of one endpoint."""

    # Not named here: _stop and _delete, which are methods of Thread.

    def __init__(self, endpoint: Endpoint, region: str, machine: Machine, forget: Callable[[Endpoint], None]) -> None:
        super().__init__(name=f"endpoint {endpoint.name}")
        self._endpoint, self._region, self._machine, self._forget = endpoint, region, machine, forget
        self._work: queue.Queue[Callable[[], None]] = queue.Queue()
        self._died: dict[Any, float] = {}
        self._deleted = False

    def update(self, deployment: Request) -> None:
        """Replace the blue fleet by the green one, as the DeploymentConfig says."""
        self._work.put(lambda: self._update(deployment))

    def rescale(self, apply: Callable[[], None]) -> None:
        """Change weights and capacities."""
        self._work.put(lambda: self._rescale(apply))

    def delete(self) -> None:
        """End the endpoint."""
        self._work.put(self._remove)

    def run(self) -> None:
        """Run until the endpoint is deleted or the server stops."""
        self._work.put(self._create)
        while not self._deleted and not self._machine.shutdown.is_set():
            try:
                work = self._work.get(timeout=POLL_SECONDS)
            except queue.Empty:
                work = self._watch
            try:
                work()
            except Exception as error:
                # A bug of the rehearsal is reported as AWS's internal error.
                log.exception("endpoint %s: internal error", self._endpoint.name)
                self._endpoint.finish("Failed", f"Request to service failed. ({error!r:.500})")
        for fleet in self._endpoint.fleets():
            for variant in fleet.variants:
                variant.process.end()
            if fleet.queue is not None:
                fleet.queue.shutdown(cancel_futures=True)

    def _create(self) -> None:
        endpoint, fleet = self._endpoint, self._endpoint.green
        assert fleet is not None
        try:
            self._start(fleet)
        except START_ERRORS as error:
            self._retire(fleet)
            self._finish("Failed", str(error))
            return
        with endpoint.lock:
            fleet.share = 1.0
            endpoint.blue, endpoint.green = fleet, None
        self._finish("InService")

    def _update(self, deployment: Request) -> None:
        endpoint = self._endpoint
        blue, green = endpoint.blue, endpoint.green
        assert blue is not None and green is not None
        try:
            self._start(green)
            rollout = Rollout(deployment, blue, green, self._machine.settings, self._region, self._pause)
            rollout.run()
        except (*START_ERRORS, RollbackError) as error:
            with endpoint.lock:
                blue.share = 1.0
                endpoint.green = None
            self._retire(green)
            self._finish("InService", str(error))
            return
        with endpoint.lock:
            endpoint.blue, endpoint.green = green, None
        self._retire(blue)
        self._finish("InService")

    def _rescale(self, apply: Callable[[], None]) -> None:
        apply()
        self._finish("InService")

    def _remove(self) -> None:
        for fleet in self._endpoint.fleets():
            self._retire(fleet)
        self._deleted = True
        self._forget(self._endpoint)
        log.info("endpoint %s: deleted", self._endpoint.name)

    def _start(self, fleet: Fleet) -> None:
        """Start all processes of a fleet and wait until they are healthy."""
        for variant in fleet.variants:
            variant.process.prepare()
            variant.process.start()
        for variant in fleet.variants:
            asked = variant.request.get("ContainerStartupHealthCheckTimeoutInSeconds", 3600)
            variant.process.wait_until_healthy(asked, self._machine.shutdown.is_set)

    def _retire(self, fleet: Fleet) -> None:
        """Answer accepted requests, then end the processes of a fleet without traffic."""
        grace = min(STOP_SECONDS, self._machine.settings.grace_seconds)
        if fleet.queue is not None:
            fleet.queue.shutdown(wait=False, cancel_futures=self._endpoint.status == "Deleting")
        until = time.monotonic() + TIMEOUT_SECONDS
        for variant in fleet.variants:
            while variant.running and variant.process.running and time.monotonic() < until:
                if self._machine.shutdown.is_set():
                    break
                time.sleep(POLL_SECONDS)
            self._died.pop(variant.process, None)
            variant.process.stop(grace)

    def _watch(self) -> None:
        """Restart a container that ended in service."""
        if self._endpoint.blue is None:
            return
        for variant in self._endpoint.blue.variants:
            process = variant.process
            if process.running:
                continue
            died = self._died.setdefault(process, time.monotonic())
            if time.monotonic() - died >= RESTART_SECONDS:
                log.warning("endpoint %s: the container of %s died, it is restarted", self._endpoint.name, variant.name)
                del self._died[process]
                process.end()
                try:
                    process.start()
                except START_ERRORS as error:
                    # As a container that ends at once: it is restarted again.
                    name = self._endpoint.name
                    log.warning("endpoint %s: the container of %s did not start: %s", name, variant.name, error)

    def _pause(self, seconds: float) -> None:
        """Wait, and watch the containers meanwhile.

        Raises:
            RollbackError: if the server stops.
        """
        until = time.monotonic() + seconds
        while True:
            self._watch()
            if self._machine.shutdown.is_set():
                raise RollbackError("the server stops")
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, POLL_SECONDS))

    def _finish(self, status: Any, failure_reason: str | None = None) -> None:
        self._endpoint.finish(status, failure_reason)
        log.info("endpoint %s: %s%s", self._endpoint.name, status, f" ({failure_reason})" if failure_reason else "")
