"""Logs of jobs and endpoints, from CloudWatch Logs."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from sagemaker_launch.aws.client import error_code

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDPOINT_LOG_GROUP = "/aws/sagemaker/Endpoints/{}"
LAST_LINES = 10
"""Lines of a log that are shown if AWS gives no reason of a failure."""
LATE_MS = 60_000
"""How much later than a younger line a line may become visible."""
EMPTY_REASON = re.compile(r"(\w*Error:)?[\s,]*(exit code: -?\d+)?")
"""AWS's reason for a job that left no message, such as `AlgorithmError: , exit code: 1`."""
EMPTY_MESSAGE = 'ErrorMessage ""'
"""The reason that AWS's toolkit writes for a process that left no message."""


class LogLine(NamedTuple):
    """One line and when it was printed."""

    timestamp_ms: int
    text: str


class Log:
    """Streams of a log group, read from where the last call ended.

    Args:
        prefix: prefix of the streams' names.
        since_ms: older lines are left out, in milliseconds since 1970.
    """

    def __init__(self, client: Any, group: str, prefix: str = "", since_ms: int = 0) -> None:
        self._client, self._group, self._prefix, self._since_ms = client, group, prefix, since_ms
        self._tokens: dict[str, str | None] = {}
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    def read(self) -> list[LogLine]:
        """The lines since the last call, in order of time."""
        lines = [line for stream in self._streams() for line in self._read_stream(stream)]
        lines.sort(key=lambda line: line.timestamp_ms)  # stable: a stream keeps its order
        self._last.extend(line.text for line in lines if line.text.strip())
        return lines

    @property
    def last_lines(self) -> list[str]:
        """The last lines that were read and are not empty."""
        return list(self._last)

    def _streams(self) -> list[str]:
        prefix = {"logStreamNamePrefix": self._prefix} if self._prefix else {}
        pages = self._client.get_paginator("describe_log_streams").paginate(logGroupName=self._group, **prefix)
        try:
            return sorted(stream["logStreamName"] for page in pages for stream in page["logStreams"])
        except ClientError as error:
            if error_code(error) == "ResourceNotFoundException":  # nothing was printed yet
                return []
            raise

    def _read_stream(self, stream: str) -> Iterator[LogLine]:
        while True:
            token = self._tokens.get(stream)
            more = {"nextToken": token} if token else {}
            answer = self._client.get_log_events(
                logGroupName=self._group,
                logStreamName=stream,
                startTime=self._since_ms,
                startFromHead=True,
                **more,
            )
            for event in answer["events"]:
                yield LogLine(event["timestamp"], event["message"])
            self._tokens[stream] = answer["nextForwardToken"]
            if answer["nextForwardToken"] == token:  # an empty page is not the end
                return


class NewEvents:
    """New lines of all streams of a log group with a prefix, by one call for up to 10,000 of them.

    CloudWatch may show a line later than a younger one, so each look begins some seconds before the newest line.

    Args:
        pattern: a filter of CloudWatch; what does not match is not sent.
    """

    def __init__(self, client: Any, group: str, prefix: str, pattern: str) -> None:
        self._client = client
        self._query = {"logGroupName": group, "logStreamNamePrefix": prefix, "filterPattern": pattern}
        self._seen: dict[str, int] = {}
        """Milliseconds since 1970 of the events that the next look gets again, by their identifiers."""
        self._since_ms = 0

    def read(self) -> list[tuple[str, str]]:
        """The name of the stream and the text of each line since the last call, in order of time."""
        try:
            pages = list(
                self._client.get_paginator("filter_log_events").paginate(startTime=self._since_ms, **self._query)
            )
        except ClientError as error:
            if error_code(error) == "ResourceNotFoundException":  # nothing was printed yet
                return []
            raise
        events = [event for page in pages for event in page["events"] if event["eventId"] not in self._seen]
        self._seen |= {event["eventId"]: event["timestamp"] for event in events}
        self._since_ms = max(0, max(self._seen.values(), default=0) - LATE_MS)
        self._seen = {key: time for key, time in self._seen.items() if time >= self._since_ms}
        events.sort(key=lambda event: event["timestamp"])
        return [(event["logStreamName"], event["message"]) for event in events]


def failure_reason(described: Mapping[str, Any], last_lines: Sequence[str] = ()) -> str:
    """Why a job or endpoint failed: AWS's reason, followed by the end of the log where AWS's reason is empty."""
    reason = _reason(described)
    if not has_no_reason(described):
        return reason
    if not last_lines:
        return reason or "AWS gives no reason"
    return "\n  ".join([f"{reason or 'AWS gives no reason'}; the log ends with:", *last_lines])


def has_no_reason(described: Mapping[str, Any]) -> bool:
    """Whether AWS's reason of a failure is empty."""
    reason = _reason(described)
    return EMPTY_REASON.fullmatch(reason) is not None or EMPTY_MESSAGE in reason


def _reason(described: Mapping[str, Any]) -> str:
    return str(described.get("FailureReason") or "").strip()


def job_log(client: Any, job: str) -> Log:
    """The log of a training job; one that was restarted has several streams."""
    return Log(client, LOG_GROUP, f"{job}/")


def endpoint_log(client: Any, endpoint: str, since_ms: int) -> Log:
    """The log of an endpoint; every machine has a stream.

    Args:
        since_ms: the time on this machine when the endpoint was started or updated. The group keeps the lines of
            endpoints that had the name before. The clock of this machine may be ahead of AWS's by a minute.
    """
    return Log(client, ENDPOINT_LOG_GROUP.format(endpoint), since_ms=since_ms - LATE_MS)
