"""One session for a command: credentials are asked for once, and once more when they have expired.

Here is also decided whether a command runs against a rehearsal. If so, none of its clients can reach AWS: they have one
address, take no proxy, and read no profile, which may name other addresses and accounts.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.configprovider import ConstantProvider
from botocore.credentials import CredentialProvider, CredentialResolver, Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError
from botocore.utils import JSONFileCache

from experiments.errors import UserError
from experiments.loopback import is_loopback

for _name in ("botocore.credentials", "botocore.tokens"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # they log the traceback of what they then raise

ENDPOINT_VARIABLE = "AWS_ENDPOINT_URL"
"""Variable of AWS's SDKs and CLI with the address of all services, of which `rehearse` prints the rehearsal's."""
REHEARSAL_CONFIG: Mapping[str, Any] = {
    "proxies": {},
    "use_fips_endpoint": False,
    "use_dualstack_endpoint": False,
    "auth_scheme_preference": "sigv4",
    "defaults_mode": "legacy",  # `auto` asks the metadata service of EC2
    "s3": {"addressing_style": "path"},
}
"""Of botocore's Config for clients of a rehearsal, whatever a user's variables say for clients of AWS."""
LOCAL_PROVIDERS = ("env", "shared-credentials-file")
"""Links of boto3's chain of credentials that ask nobody."""
RENEWED_SECONDS = 30.0
"""Threads whose requests were refused before credentials were renewed do not renew them again."""


def is_here(url: str) -> bool:
    """Whether an address is on this machine, where nothing but a rehearsal stands in for AWS."""
    return is_loopback(urlsplit(url).netloc)


def rehearsal_url() -> str | None:
    """The address of the rehearsal that this process runs against; None for AWS.

    Raises:
        UserError: if a variable sends the calls of one service elsewhere.
    """
    url = os.environ.get(ENDPOINT_VARIABLE, "")
    if not is_here(url):
        return None
    for name, value in sorted(os.environ.items()):
        if name.startswith(f"{ENDPOINT_VARIABLE}_") and value not in ("", url):
            raise UserError(
                f"{name} must be unset or {url}, the rehearsal of AWS_ENDPOINT_URL, got {value}: all calls of a "
                f"command go to the rehearsal, or none; unset {name}"
            )
    return url


def session() -> boto3.Session:
    """The session of this process and its AWS variables."""
    variables = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _session(variables)


@contextmanager
def usable_settings() -> Iterator[None]:
    """Explain what Python's own functions raise about AWS's settings: botocore passes on their errors.

    Raises:
        UserError: in place of these.
    """
    try:
        yield
    except (BotoCoreError, UserError):  # they explain themselves, and some are a ValueError too
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            "AWS's settings (variables AWS_..., files in ~/.aws) must name programs, files and addresses that exist, "
            f"got {type(error).__name__}: {error}; `aws configure list` shows where each comes from"
        ) from error


def credentials_of(session: boto3.Session) -> ChainCredentials | None:
    """The credentials of a session of ours; None if boto3's chain has none."""
    found: Any = session.get_credentials()
    return found if isinstance(found, ChainCredentials) else None


def hermetic_session(*, reads_credentials: bool = False) -> botocore.session.Session:
    """A session of botocore that has no profile and reads no file.

    Args:
        reads_credentials: it may still read the file of credentials.
    """
    own = botocore.session.get_session()
    settings = own.get_component("config_store")
    settings.set_config_provider("profile", ConstantProvider(None))
    for file in ("config_file", *(() if reads_credentials else ("credentials_file",))):
        settings.set_config_provider(file, ConstantProvider(os.devnull))
    return own


class ChainCredentials(Credentials):  # type: ignore[misc, unused-ignore]
    """The credentials that boto3's chain finds, which can be read once more."""

    def __init__(self, found: Credentials) -> None:
        self._found = found
        self._lock = threading.Lock()
        self._renewed = float("-inf")
        key, secret, token, account = self.get_frozen_credentials()
        super().__init__(key, secret, token, method="chain", account_id=account)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Key, secret and token; boto3 refreshes those of an assumed role before they expire."""
        with usable_settings():
            frozen: ReadOnlyCredentials = self._found.get_frozen_credentials()
        return frozen

    def renew(self) -> bool:
        """Read the chain again, as another program may have written new credentials; return whether they differ."""
        with self._lock:
            if time.monotonic() - self._renewed < RENEWED_SECONDS:
                return True
            found = _read_chain()
            if found is None or found.get_frozen_credentials() == self.get_frozen_credentials():
                return False
            self._found, self._renewed = found, time.monotonic()
            return True


class _Chain(CredentialProvider):  # type: ignore[misc, unused-ignore]
    METHOD = "chain"

    def load(self) -> ChainCredentials | None:
        found = _read_chain()
        return None if found is None else ChainCredentials(found)


def _read_chain() -> Any:
    """What boto3's chain finds now. Roles that were assumed are shared with the AWS CLI, which asks for MFA once."""
    if rehearsal_url() is not None:
        fresh = hermetic_session(reads_credentials=True)
        chain = fresh.get_component("credential_provider")
        return CredentialResolver([chain.get_provider(name) for name in LOCAL_PROVIDERS]).load_credentials()
    fresh = botocore.session.get_session()
    chain = fresh.get_component("credential_provider")
    if (folder := Path("~/.aws").expanduser()).is_dir():
        chain.get_provider("assume-role").cache = JSONFileCache(str(folder / "cli" / "cache"))
    with usable_settings():
        return fresh.get_credentials()


@functools.lru_cache(maxsize=8)
def _session(variables: tuple[tuple[str, str], ...]) -> boto3.Session:
    del variables  # sessions read them when they are made
    own = botocore.session.get_session() if rehearsal_url() is None else hermetic_session()
    own.register_component("credential_provider", CredentialResolver([_Chain()]))
    return boto3.Session(botocore_session=own)
