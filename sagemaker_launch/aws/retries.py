"""Which answers of AWS are waited out: a handler of botocore's event `needs-retry`, beside botocore's own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from experiments.console import say
from sagemaker_launch.aws.sessions import ChainCredentials

ATTEMPTS = 6
"""Of a call at the beginning of a command: half a minute without a network."""
PATIENT_ATTEMPTS = 24
"""Of a call while something runs that costs money: about three minutes, with pauses of up to 20 seconds."""
MAX_PAUSE_SECONDS = 20.0
EXPLAINED_ATTEMPT = 4
"""The attempt before which a line says what is waited for."""
WAIT_AND_RETRY: Mapping[str, str] = {
    "ModelNotReadyException": "API_runtime_InvokeEndpoint: status 429, 'wait and try your request again'",
}
"""Errors that AWS's reference says to retry and botocore does not, with the page (read 2026-11)."""
EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "UnrecognizedClientException", "InvalidClientTokenId"}
)
"""Credentials that AWS no longer knows."""


class WaitingOut:
    """Retries what botocore does not, and says what is waited for.

    Args:
        service: as it is named in the line.
        credentials: are read again when they have expired; None if there are none.
    """

    def __init__(self, service: str, credentials: ChainCredentials | None) -> None:
        self._service, self._credentials = service, credentials

    def needs_retry(
        self,
        response: tuple[Any, Mapping[str, Any]] | None,
        attempts: int,
        caught_exception: Exception | None,
        **event: Any,
    ) -> float | None:
        """The seconds before another attempt; None leaves the decision to botocore."""
        answer = {} if response is None else response[1]
        code = str(answer.get("Error", {}).get("Code", ""))
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in EXPIRED:
            return 0.0 if self._credentials is not None and attempts < ATTEMPTS and self._credentials.renew() else None
        waits = code in WAIT_AND_RETRY and attempts < PATIENT_ATTEMPTS
        fails = caught_exception is not None or status >= 500 or "Throttl" in code
        if attempts == EXPLAINED_ATTEMPT and (waits or fails):
            reason = code or (type(caught_exception).__name__ if caught_exception else f"status {status}")
            say(f"{self._service} does not answer yet ({reason}): asking again")
        return min(2.0**attempts, MAX_PAUSE_SECONDS) * random.random() if waits else None
