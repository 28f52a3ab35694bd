"""The gate in front of the rehearsal: which hosts and origins pass, and how each service words a refusal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from botocore.parsers import create_parser
from botocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st

from experiments.loopback import is_loopback
from sagemaker_launch.rehearsal.gate import PRINCIPAL, Gate
from sagemaker_launch.rehearsal.keys import Keys
from sagemaker_launch.rehearsal.signatures import Environ
from tests.signing import signed_headers
from tests.unit.sagemaker_launch.rehearsal.test_signatures import environ

ACCOUNT = "123456789012"
KEYS = Keys(ACCOUNT)
PRINCIPALS = (KEYS.launcher, KEYS.administrator, f"arn:aws:iam::{ACCOUNT}:role/team/jobs")
ADDRESS = "127.0.0.1:5000"


class Application:
    """Stands behind the gate, and answers like moto: to everybody."""

    def __init__(self) -> None:
        self.principals: list[str] = []

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        self.principals.append(environ[PRINCIPAL])
        start_response("200 OK", [("Access-Control-Allow-Origin", "*"), ("Content-Type", "text/plain")])
        return [b"done"]


def ask(request: Environ) -> tuple[int, dict[str, str], bytes, list[str]]:
    """Status, headers and body of the answer, and the principals whose requests came through."""
    application, told = Application(), []
    body = b"".join(Gate(application, KEYS)(request, lambda status, headers: told.append((status, headers))))
    [(status, headers)] = told
    return int(status.split()[0]), dict(headers), body, application.principals


def signed(uri: str = "/", principal: str = KEYS.launcher, host: str = ADDRESS, **headers: str) -> Environ:
    """A request that the principal has signed as it is; but for `headers`, which need no signature."""
    own = signed_headers(KEYS.of(principal).environment(), "GET", f"http://{host}{uri}", "sagemaker")
    return environ("GET", uri, {"Host": host, **own, **headers})


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_the_owner_of_a_key_passes_and_the_application_knows_who_it_is(principal: str) -> None:
    status, headers, body, principals = ask(signed(principal=principal))
    assert (status, body, principals) == (200, b"done", [principal])
    assert "Access-Control-Allow-Origin" not in headers


LOCAL = st.sampled_from(
    ["127.0.0.1", "127.0.0.2", "127.255.255.254", "localhost", "bucket.localhost", "LOCALHOST", "[::1]"]
)
FOREIGN = st.one_of(
    st.sampled_from(
        [
            *("", "attacker.example", "127.0.0.1.attacker.example", "localhost.attacker.example", "notlocalhost"),
            *("0.0.0.0", "10.0.0.1", "169.254.169.254", "[::]", "[fe80::1]", "localhost.", ".localhost/", "::1"),
            *("attacker.example@127.0.0.1", "127.0.0.1,attacker.example", "127.0.0.1/..", "127.0.0.1?x", "127.0.0.1#x"),
            *("0x7f000001", "2130706433", "127.1", "127.0.0.1 ", "\t127.0.0.1", "[::1", "127.0.0.1]"),
        ]
    ),
    st.text(st.sampled_from("abx.-01@[]:/\\ "), max_size=12).filter(lambda name: not name.endswith("localhost")),
)


@given(LOCAL, st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}")))
def test_loopback_hosts_pass_with_any_port(name: str, port: str) -> None:
    assert is_loopback(name + port)


@given(FOREIGN, st.sampled_from(["", ":80", ":5000", ":x", ":70000"]))
def test_other_hosts_do_not(name: str, port: str) -> None:
    assert not is_loopback(name + port)


def test_a_host_has_a_port_or_none() -> None:
    assert not any(map(is_loopback, ("127.0.0.1:", "localhost:0x50", "localhost:80:80", "[::1]80")))


@pytest.mark.parametrize(
    "request_of_the_owner",
    [
        signed(host="attacker.example:5000"),
        signed(Origin="http://attacker.example"),
        signed(Origin="null"),
        signed(Origin=f"http://{ADDRESS}"),
        signed("/moto-api/reset"),
        signed("/moto-api/data.json"),
        signed("/latest/meta-data/iam/security-credentials/role"),
        signed(**{"X-Moto-Account-Id": "111111111111"}),
        signed() | {"RAW_URI": f"http://{ADDRESS}/"},
        signed("//attacker.example/"),
    ],
    ids=lambda request: f"{request['HTTP_HOST']} {request['RAW_URI']} {request.get('HTTP_ORIGIN', '')}",
)
def test_a_signature_does_not_open_what_is_closed_to_everybody(request_of_the_owner: Environ) -> None:
    status, _, body, principals = ask(request_of_the_owner)
    assert (status, principals) == (403, [])
    assert b"are refused" in body or b"closed" in body or b"must be" in body, "and not for its signature"


@pytest.mark.parametrize(
    ("service", "operation", "headers", "codes"),
    [
        (
            "sagemaker",
            "ListTrainingJobs",
            {"X-Amz-Target": "SageMaker.ListTrainingJobs", "Content-Type": "application/x-amz-json-1.1"},
            ("MissingAuthenticationTokenException", "UnrecognizedClientException", "InvalidSignatureException"),
        ),
        (
            "sagemaker-runtime",
            "InvokeEndpoint",
            {},
            ("AccessDenied", "UnrecognizedClientException", "InvalidSignatureException"),
        ),
        (
            "sts",
            "GetCallerIdentity",
            {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"},
            ("MissingAuthenticationToken", "InvalidClientTokenId", "SignatureDoesNotMatch"),
        ),
        ("s3", "GetObject", {}, ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")),
    ],
)
def test_sdks_read_the_error_codes_of_their_service(
    service: str, operation: str, headers: dict[str, str], codes: tuple[str, str, str]
) -> None:
    model = get_session().get_service_model(service)
    signing_name = model.signing_name
    own = KEYS.of(KEYS.launcher).environment()
    attempts = (None, own | {"AWS_ACCESS_KEY_ID": "AKIA" + "A" * 16}, own | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    for code, keys in zip(codes, attempts, strict=True):
        request = environ("POST", "/x", {"Host": ADDRESS, **headers})
        if keys is not None:
            request |= environ(
                "POST", "/x", signed_headers(keys, "POST", f"http://{ADDRESS}/x", signing_name, **headers)
            )
        status, told, body, principals = ask(request)
        assert status in (400, 403) and principals == []
        # Nothing in an unsigned request without a body says which service it is for: S3 answers.
        protocol = "rest-xml" if keys is None and not headers else str(model.resolved_protocol)
        answer = {"status_code": status, "headers": {k.lower(): v for k, v in told.items()}, "body": body}
        parsed = create_parser(protocol).parse(answer, model.operation_model(operation).output_shape)
        assert parsed["Error"]["Code"] == code
        assert parsed["Error"]["Message"]
        assert not any(pair.secret_access_key.encode() in body for pair in map(KEYS.of, PRINCIPALS))


def test_a_head_request_gets_no_body() -> None:
    status, headers, body, _ = ask(environ("HEAD", "/bucket/key", {"Host": ADDRESS}))
    assert (status, body) == (403, b"") and int(headers["Content-Length"]) > 0


def test_a_json_error_is_json() -> None:
    _, _, body, _ = ask(environ("POST", "/", {"Host": ADDRESS, "X-Amz-Target": "SageMaker.CreateTrainingJob"}))
    assert json.loads(body)["__type"] == "MissingAuthenticationTokenException"
