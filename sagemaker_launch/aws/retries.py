"""Which answers of AWS are waited out, and for how long: a handler of botocore's event `needs-retry`.

botocore decides which answers may pass; its own limits are left out, as they count attempts and take no second or
many minutes. What counts here is the time.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError
from botocore.model import OperationModel
from botocore.retries.standard import RetryEventAdapter, StandardRetryConditions

from experiments.console import say
from sagemaker_launch.aws.sessions import ChainCredentials

AT_START_SECONDS = 20.0
"""Time in which a call is repeated while nothing runs yet."""
WHILE_RUNNING_SECONDS = 180.0
"""Time in which a call is repeated while something runs that costs money."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 20.0
EXPLAINED_ATTEMPT = 4
"""The attempt before which a line says what is waited for, after some two seconds."""
WAIT_AND_RETRY: Mapping[str, str] = {
    "ModelNotReadyException": "API_runtime_InvokeEndpoint: status 429, 'wait and try your request again'",
}
"""Errors that AWS's reference says to retry and botocore does not, with the page (read 2026-11)."""
EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "UnrecognizedClientException", "InvalidClientTokenId"}
)
"""Credentials that AWS no longer knows."""
EXPIRED_ATTEMPTS = 4
"""Attempts of a call whose credentials were renewed and are refused again."""
WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)
"""Beginning of a response that does not come from AWS: of a proxy, or of a network that wants a login first."""
BROKEN = 599
"""Status set for such a response; HTTP does not use it."""


class BrokenAnswerError(BotoCoreError):  # type: ignore[misc, unused-ignore]
    """An answer with status 200 that is not AWS's, or not the whole of it."""

    fmt = "{service} gives no whole answer to {operation}: is there a proxy, or a network that wants a login first?"


class WaitingOut:
    """Repeats calls until AWS answers, and says what is waited for.

    Args:
        service: as it is named in the line.
        credentials: are read again when they have expired; None if there are none.
        seconds: after this time a call is not repeated.
    """

    def __init__(self, service: str, credentials: ChainCredentials | None, seconds: float) -> None:
        self._service, self._credentials, self._seconds = service, credentials, seconds
        self._passing = StandardRetryConditions(max_attempts=sys.maxsize)

    def register(self, client: Any) -> None:
        """Let this decide for a client, in place of botocore's own limits."""
        events, service = client.meta.events, client.meta.service_model.service_id.hyphenize()
        events.register_first(f"needs-retry.{service}", self.needs_retry)
        events.register(f"before-parse.{service}", mark_broken)

    def needs_retry(self, operation: OperationModel, **event: Any) -> float | bool:
        """The seconds before another attempt; False ends the call.

        Raises:
            BrokenAnswerError: if the last answer is none of AWS.
        """
        context = RetryEventAdapter().create_retry_context(operation=operation, **event)
        code, attempt = context.get_error_code() or "", context.attempt_number
        if code in EXPIRED:
            is_new = self._credentials is not None and attempt < EXPIRED_ATTEMPTS and self._credentials.renew()
            return 0.0 if is_new else False
        answer = context.parsed_response or {}
        is_broken = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == BROKEN
        if not (is_broken or code in WAIT_AND_RETRY or self._passing.is_retryable(context)):
            return False
        until = context.request_context.setdefault("waiting_until", time.monotonic() + self._seconds)
        if time.monotonic() >= until:
            if is_broken:
                raise BrokenAnswerError(service=self._service, operation=operation.name)
            return False
        if attempt == EXPLAINED_ATTEMPT:
            problem = code or type(context.caught_exception or context.http_response).__name__
            say(f"{self._service} does not answer yet ({problem}): asking again")
        longest = min(FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 10), MAX_PAUSE_SECONDS)
        return float(longest * random.uniform(0.5, 1.0))


def mark_broken(operation_model: OperationModel, response_dict: dict[str, Any], **_: Any) -> None:
    """Make an error of an answer that is a web page, or was cut: a handler of botocore's event `before-parse`.

    botocore reads both as answers without any field.
    """
    if response_dict["status_code"] >= 300 or operation_model.has_streaming_output:
        return
    body, length = response_dict["body"], response_dict["headers"].get("content-length")
    is_cut = operation_model.http["method"] != "HEAD" and length is not None and int(length) != len(body)
    if is_cut or WEB_PAGE.match(body):
        response_dict["status_code"], response_dict["body"] = BROKEN, b""
