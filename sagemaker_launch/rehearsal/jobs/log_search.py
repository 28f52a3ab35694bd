"""CloudWatch's FilterLogEvents: moto ignores the prefix of streams, and knows a filter of one term only."""

from __future__ import annotations

import json
import re

from moto.logs.exceptions import InvalidParameterException
from moto.logs.responses import LogsResponse

from sagemaker_launch.rehearsal import moto_urls

MAX_STREAMS = 100
"""Streams that a request may name (FilterLogEvents, API reference, read 2026-11)."""
ONE_OF = re.compile(r'\?"([^"]+)"')
"""A term of which one must be there, in a filter pattern."""


class LogSearchResponse(LogsResponse):
    """Answers FilterLogEvents; moto answers the others."""

    def filter_log_events(self) -> str:
        """FilterLogEvents."""
        group, prefix = self._get_param("logGroupName"), self._get_param("logStreamNamePrefix")
        names = self._get_param("logStreamNames")
        if (prefix and names) or len(names or ()) > MAX_STREAMS:
            raise InvalidParameterException(
                constraint=f"at most {MAX_STREAMS} names, or a prefix", parameter="logStreamNames", value=str(names)
            )
        if prefix and group in self.logs_backend.groups:
            names = [name for name in self.logs_backend.groups[group].streams if name.startswith(prefix)]
            if not names:  # moto takes an empty list for all streams
                return json.dumps({"events": [], "searchedLogStreams": []})
        pattern = self._get_param("filterPattern") or ""
        terms = ONE_OF.findall(pattern)
        events, token, _ = self.logs_backend.filter_log_events(
            group,
            names or [],
            self._get_param("startTime"),
            self._get_param("endTime"),
            self._get_param("limit"),
            self._get_param("nextToken"),
            "" if terms else pattern,
            True,
        )
        found = [event for event in events if not terms or any(term in event["message"] for term in terms)]
        # AWS always answers with an empty list of searched streams (API reference, read 2026-11).
        answer = {"events": found, "searchedLogStreams": []}
        return json.dumps(answer | ({"nextToken": token} if token else {}))


def install_log_search() -> None:
    """Replace moto's answers, in this process."""
    moto_urls.answer("logs", LogSearchResponse.dispatch)
