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
    """

    def __init__(self, client: Any, group: str, prefix: str = "") -> None:
        self._client, self._group, self._prefix = client, group, prefix
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
                logGroupName=self._group, logStreamName=stream, startFromHead=True, **more
            )
            for event in answer["events"]:
                yield LogLine(event["timestamp"], event["message"])
            self._tokens[stream] = answer["nextForwardToken"]
            if answer["nextForwardToken"] == token:  # an empty page is not the end
                return


def failure_reason(described: Mapping[str, Any], last_lines: Sequence[str] = ()) -> str:
    """Why a job or endpoint failed: AWS's reason, followed by the end of the log where AWS's reason is empty."""
    reason = str(described.get("FailureReason") or "").strip()
    if not EMPTY_REASON.fullmatch(reason) and EMPTY_MESSAGE not in reason:
        return reason
    if not last_lines:
        return reason or "AWS gives no reason"
    return "\n  ".join([f"{reason or 'AWS gives no reason'}; the log ends with:", *last_lines])


def job_log(client: Any, job: str) -> Log:
    """The log of a training job; one that was restarted has several streams."""
    return Log(client, LOG_GROUP, f"{job}/")


def endpoint_log(client: Any, endpoint: str) -> Log:
    """The log of an endpoint; every machine has a stream."""
    return Log(client, ENDPOINT_LOG_GROUP.format(endpoint))
