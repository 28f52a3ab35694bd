"""The lease of an endpoint, stored in its tags: who owns it and when it expires. It costs money until it is deleted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from experiments.errors import UserError
from experiments.runs.environment import user_name
from sagemaker_launch.settings.cloud import CloudSettings

OWNER_TAG, EXPIRES_TAG, ENDPOINT_TAG = "owner", "expires", "endpoint"
NEVER = "never"
DEFAULT_TTL = "4h"
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


@dataclass(frozen=True)
class Lease:
    """Owner and expiry of an endpoint."""

    owner: str
    expires: datetime | None
    """In UTC; None for an endpoint that never expires."""
    unreadable: str = ""
    """The text of a tag that was changed to something that is not a time; such an endpoint does not expire."""

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the endpoint."""
        return {OWNER_TAG: self.owner, EXPIRES_TAG: f"{self.expires:%Y-%m-%dT%H:%M:%SZ}" if self.expires else NEVER}

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> Lease:
        """Read a lease from the tags of an endpoint."""
        owner, text = tags.get(OWNER_TAG, "unknown"), tags.get(EXPIRES_TAG, NEVER)
        if text == NEVER:
            return cls(owner, None)
        try:
            return cls(owner, datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC))
        except ValueError:  # one changed tag must not hide the other endpoints
            return cls(owner, None, text)

    def has_expired(self, now: datetime | None = None) -> bool:
        """Whether the lease has expired."""
        return self.expires is not None and self.expires <= (now or datetime.now(UTC))

    def lasting(self, span: timedelta) -> Lease:
        """This lease, extended if it expires within a time from now."""
        until = (datetime.now(UTC) + span).replace(microsecond=0)
        return self if self.expires is None or self.expires >= until else replace(self, expires=until)

    def text(self) -> str:
        """The lease as text."""
        if self.unreadable:
            return f"stays until it is deleted: its tag {EXPIRES_TAG} is {self.unreadable!r}, which is no time"
        if self.expires is None:
            return "stays until it is deleted"
        seconds_left = (self.expires - datetime.now(UTC)).total_seconds()
        minutes = round(abs(seconds_left) / 60)
        span = f"{minutes // 60} h {minutes % 60:02} min"
        return f"expired {span} ago" if seconds_left <= 0 else f"{span} left"


def new_lease(settings: CloudSettings, ttl: str) -> Lease:
    """The lease of an endpoint that is deployed now.

    Args:
        ttl: a whole number and m, h or d, or `none`.

    Raises:
        UserError: for anything else, or a time that ends while the endpoint may still start.
    """
    owner = settings.tags.get(OWNER_TAG) or re.sub(r"[^\w.:/=+@-]", "-", settings.endpoint.owner or user_name())
    if ttl == "none":
        return Lease(owner, None)
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", ttl)
    if found is None:
        raise UserError(f"--ttl must be a whole number and m, h or d, such as 30m, 4h or 2d, or none, got {ttl!r}")
    span, endpoint = int(found[1]) * _UNITS[found[2]], settings.endpoint
    if endpoint.has_instances and span.total_seconds() < endpoint.startup_timeout_seconds:
        raise UserError(
            f"--ttl must be at least the time in which an instance may load the model, got {ttl!r} and "
            f"cloud.endpoint.startup_timeout_seconds {endpoint.startup_timeout_seconds}: raise --ttl or lower the other"
        )
    return Lease(owner, (datetime.now(UTC) + span).replace(microsecond=0))
