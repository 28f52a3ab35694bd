"""Variables and files of a user of AWS that send calls elsewhere, and a trap for calls that leave this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import pytest

from experiments.loopback import is_loopback

FOREIGN_URL = "https://minio.example.com"
HOSTILE_VARIABLES: Mapping[str, str] = {
    "AWS_PROFILE": "no-such-profile",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    "AWS_CA_BUNDLE": "/nonexistent/bundle.pem",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "AWS_DEFAULTS_MODE": "auto",
    "AWS_SESSION_TOKEN": "token-of-another-session",
    "AWS_ROLE_ARN": "arn:aws:iam::999999999999:role/elsewhere",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/token",
    "AWS_RETRY_MODE": "adaptive",
    "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "legacy",
    "AWS_S3_USE_ARN_REGION": "true",
}
"""Without AWS_ENDPOINT_URL_S3 and others, which a command refuses by name."""


def hostile_files(folder: Path) -> dict[str, str]:
    """Variables that name a config and a file of credentials, whose profiles send calls elsewhere."""
    (folder / "config").write_text(
        f"[default]\nregion = eu-north-1\nendpoint_url = {FOREIGN_URL}\nignore_configured_endpoint_urls = true\n"
        f"use_fips_endpoint = true\nservices = theirs\nca_bundle = /nonexistent\n"
        "role_arn = arn:aws:iam::999999999999:role/elsewhere\ncredential_source = Ec2InstanceMetadata\n"
        "s3 =\n  addressing_style = virtual\n  use_accelerate_endpoint = true\n  multipart_threshold = 1KB\n"
        f"[services theirs]\ns3 =\n  endpoint_url = {FOREIGN_URL}\n"
    )
    (folder / "credentials").write_text(f"[default]\nendpoint_url = {FOREIGN_URL}\nregion = eu-north-1\n")
    return {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials")}


class Trap:
    """Records and fails each connection and each look-up of a name that leaves this machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.foreign: list[str] = []
        self._patch = monkeypatch.context()

    def __enter__(self) -> Trap:
        patch = self._patch.__enter__()
        for method in ("connect", "connect_ex"):
            patch.setattr(socket.socket, method, self._watched(getattr(socket.socket, method)))
        find = socket.getaddrinfo

        def look_up(host: Any, *given: Any, **options: Any) -> Any:
            self._check(host)
            return find(host, *given, **options)

        patch.setattr(socket, "getaddrinfo", look_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.__exit__(kind, error, trace)

    def _watched(self, method: Any) -> Any:
        def connect(own: socket.socket, address: Any) -> Any:
            if own.family in (socket.AF_INET, socket.AF_INET6):
                self._check(address[0])
            return method(own, address)

        return connect

    def _check(self, host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if not is_loopback(f"[{name}]" if ":" in name else name):
            self.foreign.append(name)
            raise OSError(f"{name} is not this machine")


@contextmanager
def proxy_trap() -> Iterator[tuple[dict[str, str], list[str]]]:
    """Variables of a proxy, and what was asked of it, all of which it refuses."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_error(502)

        do_POST = do_PUT = do_HEAD = do_DELETE = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    try:
        yield {**dict.fromkeys(names, url), "NO_PROXY": "", "no_proxy": ""}, asked
    finally:
        server.shutdown()
        server.server_close()
