"""How traffic moves from the old fleet of an endpoint to the new one: at once, by a canary, or in steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from moto.cloudwatch.models import CloudWatchBackend, cloudwatch_backends

from sagemaker_launch.rehearsal.endpoints.endpoints import Fleet, Request
from sagemaker_launch.rehearsal.endpoints.rules import shares
from sagemaker_launch.rehearsal.machine.runner import Settings

ALARM_SECONDS = 0.1
"""Time between two checks of the alarms."""


class RollbackError(Exception):
    """The new fleet is rolled back; the message is the endpoint's failure reason."""


class Rollout:
    """One deployment of a green fleet that is healthy."""

    def __init__(
        self,
        deployment: Request,
        blue: Fleet,
        green: Fleet,
        settings: Settings,
        region: str,
        pause: Callable[[float], None],
    ) -> None:
        """Prepare.

        Args:
            deployment: DeploymentConfig of the update, which may be empty.
            pause: waits for seconds, or raises.
        """
        self._policy = deployment.get("BlueGreenUpdatePolicy", {})
        alarms = deployment.get("AutoRollbackConfiguration", {}).get("Alarms", ())
        self._alarms = [alarm["AlarmName"] for alarm in alarms]
        self._blue, self._green, self._settings, self._pause = blue, green, settings, pause
        self._cloudwatch: CloudWatchBackend = cloudwatch_backends[settings.account][region]
        self._until = time.monotonic() + self._policy.get("MaximumExecutionTimeoutInSeconds", 28_800)

    def run(self) -> None:
        """Move all traffic.

        Raises:
            RollbackError: if an alarm goes off, or at the time limit.
        """
        routing = self._policy.get("TrafficRoutingConfiguration", {})
        self._look_at_alarms()
        for share in shares(routing, self._green.instances):
            self._green.enter("ActivatingTraffic")
            self._green.share, self._blue.share = share, 1 - share
            self._green.enter("Baking")
            self._bake(routing.get("WaitIntervalInSeconds", 0))
        # The old fleet stays up in case an alarm still goes off.
        self._bake(self._policy.get("TerminationWaitInSeconds", 0))

    def _bake(self, seconds: float) -> None:
        until = time.monotonic() + seconds / self._settings.rollout_speed
        while True:
            self._look_at_alarms()
            if time.monotonic() > self._until:
                raise RollbackError("The deployment exceeded MaximumExecutionTimeoutInSeconds and was rolled back.")
            left = until - time.monotonic()
            if left <= 0:
                return
            self._pause(min(left, ALARM_SECONDS))

    def _look_at_alarms(self) -> None:
        tripped = [name for name in self._alarms if alarm_state(self._cloudwatch, name) == "ALARM"]
        if tripped:
            raise RollbackError(f"The deployment was rolled back: CloudWatch alarm {', '.join(tripped)} is in ALARM.")


def alarm_state(cloudwatch: CloudWatchBackend, name: str) -> str | None:
    """State of an alarm, or None if there is no such alarm."""
    alarm = cloudwatch.alarms.get(name)
    return None if alarm is None else str(alarm.state_value)
