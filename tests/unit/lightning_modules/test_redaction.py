"""No secret is in a text that was redacted, in whatever form a program repeats it."""

from __future__ import annotations

import base64
import logging
import pickle
import time
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.errors import CommandError, TrackingError
from lightning_modules import redaction
from lightning_modules.errors import UserError
from lightning_modules.redaction import BLOT, MIN_KNOWN, RedactedFormatter, public_url, redact, remember_url

EXAMPLES = 50
"""Of each property: tests/attacks/test_secrets.py has more."""
PLAIN = st.text("abcxyzABCXYZ0123456789", min_size=MIN_KNOWN, max_size=20).map("q{}".format)
SPECIAL = st.text("aZ9@:/?#&=%+ ;,.!$^~*()[]{}|\\'\"<>`é柴", min_size=MIN_KNOWN, max_size=20).map("q7{}7q".format)
NAMES = st.sampled_from(
    [
        *("password", "passwd", "PASSWORD", "Token", "access_token", "secret", "client-secret", "api_key", "%54oken"),
        *("pass%77ord", "X-Amz-Signature", "X-Amz-Security-Token", "sslpassword", "sig"),
    ]
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_remembered", set())


@settings(max_examples=EXAMPLES, deadline=None)
@given(SPECIAL)
@example("p@ss:w/rd?x#y")
def test_a_password_of_any_letters_is_not_in_the_public_url(password: str) -> None:
    for written in (password, quote(password, safe="")):
        shown = public_url(f"postgresql+psycopg://me:{written}@db.example.org:5432/studies")
        assert shown == f"postgresql+psycopg://me:{BLOT}@db.example.org:5432/studies"


@settings(max_examples=EXAMPLES, deadline=None)
@given(NAMES, SPECIAL)
def test_a_secret_parameter_is_not_in_the_public_url(name: str, secret: str) -> None:
    shown = public_url(f"https://example.org/a?x=1&{name}={quote_plus(secret)}&y=2")
    assert shown == f"https://example.org/a?x=1&{name}={BLOT}&y=2"


@settings(max_examples=EXAMPLES, deadline=None)
@given(NAMES, PLAIN, PLAIN)
def test_secrets_of_urls_that_nobody_remembered_are_not_in_a_text(name: str, password: str, secret: str) -> None:
    text = redact(f"first http://me:{password}@h:1/x?{name}={secret}, then 'mysql://you:{password}@h/d' failed")
    assert text == f"first http://me:{BLOT}@h:1/x?{name}={BLOT}, then 'mysql://you:{BLOT}@h/d' failed"


@settings(max_examples=EXAMPLES, deadline=None)
@given(SPECIAL)
def test_a_remembered_password_is_replaced_in_every_form_that_a_program_repeats(password: str) -> None:
    redaction._remembered.clear()
    written = quote(password, safe="")
    remember_url(f"http://me:{written}@h/")
    login = base64.b64encode(f"me:{password}".encode()).decode()
    for form in (password, written, repr(password)[1:-1], quote_plus(password)):
        assert redact(f"no such key prefix: {form} at all") == f"no such key prefix: {BLOT} at all", form
    assert login not in redact(f"headers: {{'x': '{login}'}}")


def test_the_parts_that_a_parser_cuts_a_password_into_are_replaced() -> None:
    remember_url("postgresql://me:first@second/third@db/x")
    assert redact("no host 'second'; no path third@db; first") == f"no host '{BLOT}'; no path {BLOT}@db; {BLOT}"


def test_a_url_whose_scheme_was_forgotten_has_a_password_too() -> None:
    assert public_url("me:hun@ter22@host:5000") == f"me:{BLOT}@host:5000"
    for plain in ("sqlite:////tmp/a@b.db", "models:/dogs@champion", "host:5000", "/tmp/12:30@noon"):
        assert public_url(plain) == plain
    remember_url("me:hunter22@host:5000")
    assert redact("tracking.uri must start with http://, got 'me:hunter22@host:5000'").endswith(
        f"'me:{BLOT}@host:5000'"
    )


def test_a_short_password_blots_no_common_word() -> None:
    remember_url("http://me:a@h/")
    remember_url("http://me:trains@h/")
    assert redact("a model trains and retrains") == f"a model {BLOT} and retrains"


@pytest.mark.parametrize(
    "text",
    [
        "AWS_SECRET_ACCESS_KEY={}",
        "aws_secret_access_key = '{}'",
        '{{"password": "{}"}}',
        "{{'X-Amz-Security-Token': b'{}'}}",
        "('token', '{}')",
        "Authorization: Bearer {}",
        "authorization: {}",
        "password%3D{}",
        "databricks://token:{}@adb.example.org",
        "databricks://scope:{}",
        "MLFLOW_TRACKING_PASSWORD={}",
        "https://{}@example.org/",
        "--tracking.uri=http://h/?token={}",
        "--password {}",
        "Server=h;Uid=u;Pwd={};",
        "X-Api-Key: {}",
        "Cookie: session={}",
    ],
)
def test_a_secret_with_a_name_beside_it_is_replaced(text: str) -> None:
    secret = "Zx9" * 9
    assert secret not in redact(text.format(secret))
    assert BLOT in redact(text.format(secret))


@pytest.mark.parametrize(
    "token",
    [
        "AKIA" + "Q3EXAMPLE7WXYZ12",
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 9,
        "sk-proj-" + "a1B2" * 9,
        "xoxb-" + "123456789012-" * 2,
        "dapi" + "0123456789abcdef" * 2,
        "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJl",
    ],
)
def test_a_token_is_known_by_its_form(token: str) -> None:
    assert redact(f"refused {token}: expired") == f"refused {BLOT}: expired"


def test_the_working_folder_of_a_shell_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/me/experiments")
    monkeypatch.setenv("DB_PWD", "correct horse")
    assert redact("see /home/me/experiments/conf, not correct horse") == "see /home/me/experiments/conf, not ***"


def test_the_secrets_of_the_environment_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "Plant3d/Word+")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "Sess10nT0ken==")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pr0xyPass@proxy:3128")
    monkeypatch.setenv("COLUMNS", "12345678")
    said = redact("Plant3d/Word+ and Plant3d%2FWord%2B, Sess10nT0ken==, pr0xyPass, 12345678")
    assert said == f"{BLOT} and {BLOT}, {BLOT}, {BLOT}, 12345678"


@pytest.mark.parametrize(
    "text",
    [
        "aws ecr create-repository --tags Key=project,Value=dogs",
        "--trainer.max_epochs 5 --data.root 's3://bucket/photos@2x' max_tokens=5 bypass=1 tokenizer=x",
        "https://mlflow.example.org:5000/#/experiments/1/runs?orderByAsc=false",
        "sweep.storage must be a URL such as postgresql+psycopg://user@host/database",
        "models:/dogs@champion sqlite:////tmp/a%20b.db arn:aws:iam::123456789012:role/training",
        "the token expired, and a password is wrong; --token --verbose",
        "docker login --username AWS --password-stdin 1.dkr.ecr.eu-west-1.amazonaws.com",
    ],
)
def test_a_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text("a:/@?&=' \"%3Dtokenpasswrd", max_size=80))
def test_redacting_twice_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "part", ["a", "://a:", "a=", "token=a=", "?a=", "-- ", "'a':'", "token=", " = ", "://me:x@", "\\'"]
)
def test_a_long_text_takes_linear_time(part: str) -> None:
    seconds = []
    for length in (20_000, 200_000):
        started = time.perf_counter()
        redact(part * (length // len(part)))
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 40 * seconds[0] + 0.2


def test_a_log_file_has_no_secret_in_lines_and_tracebacks(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "server.log")
    handler.setFormatter(RedactedFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("own")
    log.addHandler(handler)
    try:
        raise ValueError("http://me:hunter22@h")
    except ValueError:
        log.exception("at %s", "https://h/?X-Amz-Signature=abcdef")
    handler.close()
    text = (tmp_path / "server.log").read_text()
    assert text.startswith("ERROR at https://h/?X-Amz-Signature=***\n")
    assert text.endswith("ValueError: http://me:***@h\n")


@pytest.mark.parametrize("kind", [UserError, CommandError, TrackingError])
def test_an_error_is_redacted_when_it_is_made_also_in_another_process(kind: type[Exception]) -> None:
    error = kind("http://me:hunter22@h does not answer")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == f"http://me:{BLOT}@h does not answer"
