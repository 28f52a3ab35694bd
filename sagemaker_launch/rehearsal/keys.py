"""Who may call the rehearsal: three principals, each with a key pair of its own that every start draws again.

The names are those of the policies that `python -m sagemaker_launch policy` prints.
"""

from __future__ import annotations

import base64
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Principal = Literal["launcher", "role", "schedule_role"]
"""The user of the launcher; the role of jobs and endpoints; the role of the schedule that ends a lease."""


@dataclass(frozen=True)
class KeyPair:
    """An access key, which names a principal, and the secret with which the principal signs."""

    access_key_id: str
    secret_access_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables in which AWS's SDKs and CLI look for it."""
        return {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}


Keys = Mapping[Principal, KeyPair]


def draw_keys() -> Keys:
    """New random keys in the form of AWS's own: 20 capitals and digits, and a secret of 240 random bits."""
    principals: tuple[Principal, ...] = get_args(Principal)
    return {principal: _draw_pair() for principal in principals}


def _draw_pair() -> KeyPair:
    access_key_id = "AKIA" + "".join(secrets.choice(string.ascii_uppercase + "234567") for _ in range(16))
    return KeyPair(access_key_id, base64.b64encode(secrets.token_bytes(30)).decode())
