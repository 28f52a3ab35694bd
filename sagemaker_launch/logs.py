"""What jobs print, from CloudWatch Logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from sagemaker_launch.aws import error_code

LOG_GROUP = "/aws/sagemaker/TrainingJobs"


class LogLine(NamedTuple):
    """One line and when it was printed."""

    timestamp_ms: int
    text: str


class JobLog:
    """The log of one job, read on from where the last look ended. A job that was restarted has several streams."""

    def __init__(self, client: Any, job: str) -> None:
        self._client, self._job = client, job
        self._tokens: dict[str, str | None] = {}

    def read(self) -> list[LogLine]:
        """The lines that are new since the last call, in their order."""
        lines = [line for stream in self._streams() for line in self._read_stream(stream)]
        return sorted(lines, key=lambda line: line.timestamp_ms)  # stable: a stream keeps its order

    def _streams(self) -> list[str]:
        pages = self._client.get_paginator("describe_log_streams").paginate(
            logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self._job}/"
        )
        try:
            return sorted(stream["logStreamName"] for page in pages for stream in page["logStreams"])
        except ClientError as error:
            if error_code(error) == "ResourceNotFoundException":  # no job of this account has printed anything yet
                return []
            raise

    def _read_stream(self, stream: str) -> Iterator[LogLine]:
        while True:
            token = self._tokens.get(stream)
            more = {"nextToken": token} if token else {}
            answer = self._client.get_log_events(
                logGroupName=LOG_GROUP, logStreamName=stream, startFromHead=True, **more
            )
            for event in answer["events"]:
                yield LogLine(event["timestamp"], event["message"])
            self._tokens[stream] = answer["nextForwardToken"]
            if answer["nextForwardToken"] == token:  # an empty page is not the end
                return
