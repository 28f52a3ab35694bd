"""EventBridge Scheduler: moto stores the schedules, and the one rehearsed kind is carried out here.

It is a one-time schedule which deletes an endpoint: the lease of an endpoint on AWS's side.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from botocore.exceptions import BotoCoreError, ClientError
from moto.scheduler.exceptions import ValidationException
from moto.scheduler.models import EventBridgeSchedulerBackend, Schedule, scheduler_backends
from moto.scheduler.responses import EventBridgeSchedulerResponse

from sagemaker_launch.rehearsal import moto_urls
from sagemaker_launch.rehearsal.api import Regions
from sagemaker_launch.rehearsal.service import Service

LOOK_SECONDS = 1.0

log = logging.getLogger(__name__)


class SchedulesResponse(EventBridgeSchedulerResponse):
    """Refuses schedules that would never be carried out here."""

    def create_schedule(self) -> str:
        """CreateSchedule."""
        self._check()
        return super().create_schedule()

    def update_schedule(self) -> str:
        """UpdateSchedule."""
        self._check()
        return super().update_schedule()

    def _check(self) -> None:
        target = self._get_param("Target")
        try:
            assert isinstance(json.loads(target["Input"])["EndpointName"], str)
        except (LookupError, ValueError, TypeError, AssertionError) as error:
            raise ValidationException('Target.Input must be {"EndpointName": "..."} for deleteEndpoint') from error
        try:
            due(self._get_param("ScheduleExpression"), self._get_param("ScheduleExpressionTimezone"))
        except (ValueError, KeyError) as error:
            raise ValidationException(
                f"of schedule expressions only at(yyyy-mm-ddThh:mm:ss) is rehearsed: {error}"
            ) from error


class Clock(threading.Thread):
    """Carries out schedules whose time has come."""

    def __init__(
        self, regions: Regions, account: str, shutdown: threading.Event, sagemaker: Callable[[str, str], Any]
    ) -> None:
        """Prepare.

        Args:
            sagemaker: gives boto3's client for a region, with the keys of a role.
        """
        super().__init__(name="schedules")
        self._regions, self._account, self._shutdown = regions, account, shutdown
        self._sagemaker = sagemaker
        self._done: set[tuple[str, float]] = set()

    def run(self) -> None:
        """Check every second, until the server stops."""
        while not self._shutdown.wait(LOOK_SECONDS):
            for service in self._regions.values():
                backend = scheduler_backends[self._account][service.region]
                for group in list(backend.schedule_groups.values()):
                    for schedule in list(group.schedules.values()):
                        self._look(service, backend, schedule)

    def _look(self, service: Service, backend: EventBridgeSchedulerBackend, schedule: Schedule) -> None:
        key = (schedule.arn, schedule.last_modified_date)
        when = due(schedule.schedule_expression, schedule.schedule_expression_timezone)
        if schedule.state != "ENABLED" or key in self._done or datetime.now(UTC) < when:
            return
        name = json.loads(schedule.target["Input"])["EndpointName"]
        try:
            # As the scheduler does on AWS: a call of the service, signed by the schedule's role.
            self._sagemaker(service.region, schedule.target["RoleArn"]).delete_endpoint(EndpointName=name)
            log.info("schedule %s: deletes endpoint %s", schedule.name, name)
        except ClientError as error:
            message = error.response["Error"]["Message"]
            if message.startswith("Cannot update in-progress"):
                return  # tried again, as AWS does
            log.warning("schedule %s: %s", schedule.name, message)
        except BotoCoreError as error:
            log.warning("schedule %s: tried again: %s", schedule.name, error)
            return
        self._done.add(key)
        if schedule.action_after_completion == "DELETE":
            backend.delete_schedule(schedule.group_name, schedule.name)


def install_schedules() -> None:
    """Replace moto's answers, in this process."""
    moto_urls.answer("scheduler", SchedulesResponse.dispatch)


def due(expression: str, zone: str | None) -> datetime:
    """When a one-time schedule is to be carried out.

    Raises:
        ValueError: if it is not a one-time schedule.
        KeyError: if there is no such time zone.
    """
    found = re.fullmatch(r"at\((.+)\)", expression)
    if found is None:
        raise ValueError(f"got {expression}")
    # Machines without a time zone database know UTC, too.
    place = UTC if zone in (None, "UTC") else ZoneInfo(zone)
    return datetime.fromisoformat(found[1]).replace(tzinfo=place)
