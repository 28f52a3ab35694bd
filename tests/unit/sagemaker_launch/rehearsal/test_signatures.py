"""Who signed a request: AWS's own worked examples pass, and nothing that differs from them does."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from sagemaker_launch.rehearsal.keys import KeyPair, Keys
from sagemaker_launch.rehearsal.signatures import Environ, RefusedRequestError, verify

# The key of AWS's documentation, in two pieces: nobody should take it for one of ours.
ACCOUNT, ROLE = "123456789012", "arn:aws:iam::123456789012:role/jobs"
EXAMPLE = KeyPair("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG" + "/bPxRfiCYEXAMPLEKEY")
SUITE = KeyPair("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG" + "+bPxRfiCYEXAMPLEKEY")
MAY_2013 = datetime(2013, 5, 24, tzinfo=UTC)
S3_SCOPE = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"
CHUNKS = (b"a" * 65536, b"a" * 1024, b"")
CHUNKED = {
    "host": "s3.amazonaws.com",
    "x-amz-date": "20130524T000000Z",
    "x-amz-storage-class": "REDUCED_REDUNDANCY",
    "x-amz-decoded-content-length": "66560",
    "content-encoding": "aws-chunked",
}


def environ(method: str, uri: str, headers: Mapping[str, str], body: bytes = b"") -> Environ:
    """A request as werkzeug hands it over."""
    found: dict[str, Any] = {"REQUEST_METHOD": method, "RAW_URI": uri, "PATH_INFO": urlsplit(uri).path}
    found |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        found[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return found


def authorization(scope: str, headers: str, signature: str) -> str:
    return f"AWS4-HMAC-SHA256 Credential={scope},SignedHeaders={headers},Signature={signature}"


def chunked_body(signatures: tuple[str, ...], trailer: str = "") -> bytes:
    chunks = zip(CHUNKS, signatures, strict=True)
    body = b"".join(b"%x;chunk-signature=%s\r\n%s\r\n" % (len(chunk), one.encode(), chunk) for chunk, one in chunks)
    return body.removesuffix(b"\r\n") + trailer.encode() + b"\r\n"


def signed_chunks() -> Environ:
    """AmazonS3/latest/API/sigv4-streaming.html."""
    body = chunked_body(
        (
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        )
    )
    names = "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;"
    signature = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    headers = CHUNKED | {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "content-length": "66824"}
    headers["authorization"] = authorization(S3_SCOPE, f"{names}x-amz-storage-class", signature)
    return environ("PUT", "/examplebucket/chunkObject.txt", headers, body)


def signed_chunks_and_trailer() -> Environ:
    """AmazonS3/latest/API/sigv4-streaming-trailers.html."""
    body = chunked_body(
        (
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        ),
        "\r\nx-amz-checksum-crc32c:sOO8/Q==\r\n"
        "x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435",
    )
    names = "content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class"
    signature = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
    headers = CHUNKED | {"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"}
    headers["x-amz-trailer"] = "x-amz-checksum-crc32c"
    headers["authorization"] = authorization(S3_SCOPE, f"{names};x-amz-trailer", signature)
    return environ("PUT", "/examplebucket/chunkObject.txt", headers, body)


def ranged_get() -> Environ:
    """AmazonS3/latest/API/sig-v4-header-based-auth.html."""
    headers = {"host": "examplebucket.s3.amazonaws.com", "range": "bytes=0-9", "x-amz-date": "20130524T000000Z"}
    headers["x-amz-content-sha256"] = hashlib.sha256(b"").hexdigest()
    signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    headers["authorization"] = authorization(S3_SCOPE, "host;range;x-amz-content-sha256;x-amz-date", signature)
    return environ("GET", "/test.txt", headers)


def presigned_get() -> Environ:
    """AmazonS3/latest/API/sigv4-query-string-auth.html."""
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={S3_SCOPE.replace('/', '%2F')}"
    query += "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    query += "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    return environ("GET", f"/test.txt?{query}", {"host": "examplebucket.s3.amazonaws.com"})


def presigned_version_2() -> Environ:
    """AmazonS3/latest/userguide/RESTAuthentication.html."""
    query = "AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D&Expires=1175139620"
    return environ("GET", f"/johnsmith/photos/puppy.jpg?{query}", {"host": "s3.amazonaws.com"})


def get_vanilla() -> Environ:
    """Of AWS's Signature Version 4 test suite."""
    scope = "AKIDEXAMPLE/20150830/us-east-1/service/aws4_request"
    signature = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    headers = {"host": "example.amazonaws.com", "x-amz-date": "20150830T123600Z"}
    headers["authorization"] = authorization(scope, "host;x-amz-date", signature)
    return environ("GET", "/", headers)


EXAMPLES = {
    ranged_get: (EXAMPLE, MAY_2013),
    presigned_get: (EXAMPLE, MAY_2013),
    signed_chunks: (EXAMPLE, MAY_2013),
    signed_chunks_and_trailer: (EXAMPLE, MAY_2013),
    presigned_version_2: (EXAMPLE, datetime(2007, 3, 27, tzinfo=UTC)),
    get_vanilla: (SUITE, datetime(2015, 8, 30, 12, 36, tzinfo=UTC)),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_worked_examples_of_awss_documentation_pass(example: Any) -> None:
    pair, now = EXAMPLES[example]
    request = example()
    body = request["wsgi.input"].getvalue()
    keys = Keys(ACCOUNT, {ROLE: pair})
    assert verify(request, keys, now) == ROLE
    assert request["wsgi.input"].read() == body, "the application gets the body, once more"
    assert f"Credential={pair.access_key_id}/" in request["HTTP_AUTHORIZATION"], "moto finds the service there"


@pytest.mark.parametrize("example", EXAMPLES)
def test_another_key_or_another_day_does_not(example: Any) -> None:
    pair, now = EXAMPLES[example]
    with pytest.raises(RefusedRequestError) as refused:
        verify(example(), Keys(ACCOUNT), now)
    assert refused.value.fault == "key"
    forged = KeyPair(pair.access_key_id, "another secret")
    with pytest.raises(RefusedRequestError) as refused:
        verify(example(), Keys(ACCOUNT, {ROLE: forged}), now)
    assert refused.value.fault == "signature"
    for moment in (now - timedelta(days=3650), now + timedelta(days=7)):
        if example is presigned_version_2 and moment < now:
            continue  # its URLs have no beginning
        with pytest.raises(RefusedRequestError) as refused:
            verify(example(), Keys(ACCOUNT, {ROLE: pair}), moment)
        assert refused.value.fault in ("time", "expired")


def changed_bodies(body: bytes) -> dict[str, bytes]:
    start, second, last = body.index(b"\r\n") + 2, body.index(b"400;"), body.rindex(b"0;chunk-signature=")
    end = last + len(b"0;chunk-signature=") + 64
    return {
        "a byte of the first chunk": body[:start] + b"b" + body[start + 1 :],
        "a byte of the last chunk": body[: last - 3] + b"b" + body[last - 2 :],
        "chunks in another order": body[second:last] + body[:second] + body[last:],
        "no last chunk": body[:last],
        "half a chunk": body[:1000],
        "no chunks": b"a" * 66560,
        "another trailer": body[:end] + b"\r\nx-amz-checksum-crc32c:AAAAAA==\r\n\r\n",
    }


@pytest.mark.parametrize("example", [signed_chunks, signed_chunks_and_trailer])
@pytest.mark.parametrize("change", changed_bodies(signed_chunks()["wsgi.input"].getvalue()))
def test_a_changed_chunk_is_refused(example: Any, change: str) -> None:
    request = example()
    body = changed_bodies(request["wsgi.input"].getvalue())[change]
    request |= {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
    with pytest.raises(RefusedRequestError) as refused:
        verify(request, Keys(ACCOUNT, {ROLE: EXAMPLE}), MAY_2013)
    assert refused.value.fault in ("signature", "payload")


KEYS = Keys(ACCOUNT)
NOW = datetime.now(UTC)
SIGNERS = ("header", "s3 header", "presigned", "presigned version 2")


def signed(kind: str, method: str, path: str, body: bytes) -> Environ:
    """A request of the launcher, signed by botocore."""
    pair = KEYS.of(KEYS.launcher)
    credentials = Credentials(pair.access_key_id, pair.secret_access_key)
    data = body if "header" in kind else b""  # a presigned URL leaves the body open
    request = AWSRequest(method, f"http://127.0.0.1:5000{path}", headers={"x-amz-meta-a": "1"}, data=data)
    signer: Any = {
        "header": lambda: SigV4Auth(credentials, "sagemaker", "us-east-1"),
        "s3 header": lambda: S3SigV4Auth(credentials, "s3", "us-east-1"),
        "presigned": lambda: S3SigV4QueryAuth(credentials, "s3", "us-east-1", expires=60),
        "presigned version 2": lambda: HmacV1QueryAuth(credentials, expires=60),
    }[kind]()
    signer.add_auth(request)
    parts = urlsplit(request.url)
    headers = {"host": "127.0.0.1:5000", **dict(request.headers.items())}
    headers.pop("Date", None)
    return environ(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers, body)


@pytest.mark.parametrize("kind", SIGNERS)
@settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
    path=st.sampled_from(["/b/a%20b", "/b/k%C3%A4", "/b//x", "/b/k?uploads", "/b/k?uploadId=1&partNumber=2"]),
    body=st.binary(max_size=64),
)
def test_what_botocore_signs_passes_and_any_change_does_not(kind: str, method: str, path: str, body: bytes) -> None:
    def attempt(**changes: str | bytes) -> Any:
        request = signed(kind, method, path, body)
        if "body" in changes:
            changed = changes.pop("body")
            request["wsgi.input"], request["CONTENT_LENGTH"] = io.BytesIO(changed), str(len(changed))
        request.update(changes)
        return verify(request, KEYS, NOW)

    assert attempt() == KEYS.launcher
    uri = signed(kind, method, path, body)["RAW_URI"]
    forgeries: list[dict[str, Any]] = [
        {"REQUEST_METHOD": "HEAD"},
        {"RAW_URI": uri.replace("/b", "/c", 1)},
        {"HTTP_X_AMZ_META_A": "2"},
        {"HTTP_X_AMZ_TARGET": "SageMaker.CreateTrainingJob"},
    ]
    if kind != "presigned version 2":  # which covers neither the host nor other parts of the query
        forgeries += [{"HTTP_HOST": "127.0.0.1:5001"}, {"RAW_URI": f"{uri}{'&' if '?' in uri else '?'}acl"}]
    if "header" in kind:
        forgeries += [{"body": body + b"!"}, {"body": b""}] if body else [{"body": b"!"}]
    for forgery in forgeries:
        with pytest.raises(RefusedRequestError):
            attempt(**forgery)


def test_a_pair_belongs_to_one_user_or_role() -> None:
    keys = Keys(ACCOUNT)
    pair = keys.of(ROLE)
    assert keys.of(ROLE) == pair and keys.owner(pair.access_key_id) == (ROLE, pair)
    assert keys.of(f"{ROLE}-2") != pair and keys.owner("AKIAUNKNOWN") is None


def test_each_start_draws_keys_of_its_own() -> None:
    starts = [Keys(ACCOUNT) for _ in range(20)]
    pairs = [keys.of(arn) for keys in starts for arn in (keys.launcher, keys.administrator, ROLE)]
    assert len({pair.access_key_id for pair in pairs} | {pair.secret_access_key for pair in pairs}) == 120
    assert all(len(pair.access_key_id) == 20 and len(pair.secret_access_key) == 40 for pair in pairs)
    assert pairs[0].secret_access_key not in repr(pairs[0])
