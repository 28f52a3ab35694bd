"""Who may call the rehearsal: users and roles of IAM, each with a key pair of its own that every start draws again."""

from __future__ import annotations

import base64
import secrets
import string
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

LAUNCHER, ADMINISTRATOR = "launcher", "administrator"
"""Users: the person who runs the launcher, and the one who sets the account up."""


@dataclass(frozen=True)
class KeyPair:
    """An access key, which names a principal, and the secret with which the principal signs."""

    access_key_id: str
    secret_access_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables in which AWS's SDKs and CLI look for it."""
        return {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}


class Keys:
    """The key pairs of an account, by the ARN of the user or role that signs with them."""

    def __init__(self, account: str, known: Mapping[str, KeyPair] | None = None) -> None:
        """Begin with the pairs of the users.

        Args:
            known: further pairs, by ARN.
        """
        self.launcher, self.administrator = (
            f"arn:aws:iam::{account}:user/{name}" for name in (LAUNCHER, ADMINISTRATOR)
        )
        self._lock = threading.Lock()
        self._pairs = {arn: _draw_pair() for arn in (self.launcher, self.administrator)} | dict(known or {})

    def of(self, arn: str) -> KeyPair:
        """The pair of a user or a role, drawn when it is first asked for."""
        with self._lock:
            if arn not in self._pairs:
                self._pairs[arn] = _draw_pair()
            return self._pairs[arn]

    def owner(self, access_key_id: str) -> tuple[str, KeyPair] | None:
        """The ARN that a key belongs to, and the pair; None for a key that was not drawn here."""
        with self._lock:
            found = (one for one in self._pairs.items() if one[1].access_key_id == access_key_id)
            return next(found, None)


def _draw_pair() -> KeyPair:
    """A new random pair in the form of AWS's own: 20 capitals and digits, and a secret of 240 random bits."""
    access_key_id = "AKIA" + "".join(secrets.choice(string.ascii_uppercase + "234567") for _ in range(16))
    return KeyPair(access_key_id, base64.b64encode(secrets.token_bytes(30)).decode())
