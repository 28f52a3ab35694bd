"""Who may ask a server that is for this machine only."""

from __future__ import annotations

import pytest

from experiments.loopback import is_loopback, why_foreign


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:5000",
        "127.0.0.1",
        "LOCALHOST:80",
        "localhost",
        "[::1]:8080",
        "[::1]",
        "127.8.9.10:1",
        "a.localhost:5",
    ],
)
def test_this_machine_is_asked_by_any_of_its_names_and_ports(host: str) -> None:
    assert is_loopback(host)
    assert why_foreign(host, None) is None
    assert why_foreign(host, f"http://{host}") is None


@pytest.mark.parametrize(
    "host",
    [
        *("", "example.com", "example.com:5000", "10.example.com:5000", "192.168.example.com", "10.0.0.1:5000"),
        *("127.0.0.1.example.com:5000", "localhost.example.com", "notlocalhost", "localhost@example.com", "0.0.0.0:80"),
        *("127.0.0.1:5000, example.com", "127.0.0.1:x", "localhost:", "::1", "[::2]:80", "127.0.0.1 ", "localhost\n"),
    ],
)
def test_no_other_name_is_taken(host: str) -> None:
    assert not is_loopback(host)
    assert "Host header" in (why_foreign(host, None) or "")


@pytest.mark.parametrize(
    "origin",
    [
        *("http://example.com", "https://localhost:5000", "http://localhost:5001", "http://127.0.0.1:5000", "null", ""),
        *("http://localhost:5000.example.com", "http://localhost:5000/", "http://localhost:5000, http://example.com"),
    ],
)
def test_only_pages_of_the_server_itself_may_ask(origin: str) -> None:
    assert "Origin header" in (why_foreign("localhost:5000", origin) or "")


STUDIO = "d-abc.studio.eu-west-1.sagemaker.aws"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (STUDIO, None),
        (f"{STUDIO}:443", f"https://{STUDIO}"),
        (STUDIO.upper(), f"https://{STUDIO}"),
        ("127.0.0.1:5000", f"https://{STUDIO}"),  # the proxy has replaced the Host header
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_a_name_that_a_person_allows_is_taken(host: str, origin: str | None) -> None:
    assert why_foreign(host, origin, [STUDIO]) is None
    if STUDIO in f"{host}{origin}".lower():
        assert why_foreign(host, origin) is not None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (f"x.{STUDIO}", None),
        (f"{STUDIO}.example.com", None),
        (STUDIO, "https://example.com"),
        ("127.0.0.1:5000", f"https://{STUDIO}.example.com"),
        ("127.0.0.1:5000", "null"),
        (STUDIO, ""),
    ],
)
def test_an_allowed_name_allows_no_other(host: str, origin: str | None) -> None:
    assert why_foreign(host, origin, [STUDIO]) is not None
