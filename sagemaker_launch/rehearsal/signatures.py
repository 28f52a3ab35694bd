"""Checks that a request was signed with one of the rehearsal's keys, by the rules of AWS's Signature Version 4.

botocore's own signer computes the signature that a request must have. Sources, 2026:
docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html (header),
docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html (presigned URL),
sigv4-streaming.html and sigv4-streaming-trailers.html there (chunked uploads), and
docs.aws.amazon.com/AmazonS3/latest/userguide/RESTAuthentication.html (Version 2: boto3 presigns S3 URLs with it).
"""

from __future__ import annotations

import hashlib
import hmac
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from botocore.auth import SIGV4_TIMESTAMP, UNSIGNED_PAYLOAD, HmacV1Auth, S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials
from moto.core.request import environ_key_for_header
from werkzeug.exceptions import ClientDisconnected
from werkzeug.wsgi import get_input_stream

from sagemaker_launch.rehearsal.keys import KeyPair, Keys

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW = timedelta(minutes=15)
"""Between the clocks of client and service (AWS's IAM user guide, 2026)."""
MAX_EXPIRES_SECONDS = 604_800
"""Of a presigned URL: seven days (AWS's S3 API reference, 2026)."""
UNSIGNED_CHUNKS = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_AND_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
EMPTY_HASH = hashlib.sha256(b"").hexdigest()
MAX_CHUNK_HEADER_BYTES = 256
"""Of the line before a chunk: 16 digits of size, and `;chunk-signature=` with 64 digits."""
SCOPE = re.compile(r"([^/]+)/(\d{8})/([\w-]+)/([\w.-]+)/aws4_request")
"""Access key, date, region and service."""
AUTHORIZATION = re.compile(rf"{ALGORITHM}\s+Credential=(\S+?),\s*SignedHeaders=(\S+?),\s*Signature=([0-9a-f]{{64}})")

Fault = Literal[
    "missing",
    "malformed",
    "key",
    "signature",
    "time",
    "expired",
    "payload",
    "forbidden",
    "unsupported",
    "unknown",
    "body",
    "internal",
]
Environ = dict[str, Any]


class RefusedRequestError(Exception):
    """A request that is not carried out: the kind of fault, and AWS's words for it where it has some."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True)
class Signed:
    """What a request says about its own signature of Version 4."""

    access_key_id: str
    time: datetime
    region: str
    service: str
    headers: tuple[str, ...]
    """Names of the signed headers, in small letters."""
    signature: str
    query: str
    """What the signature covers of the query string."""
    expires_seconds: int | None
    """Of a presigned URL."""

    @classmethod
    def parse(cls, environ: Environ) -> Signed:
        """Read the Authorization header, or the query string of a presigned URL.

        Raises:
            RefusedRequestError: if there is no signature, or what there is can't be read.
        """
        query = urlsplit(environ["RAW_URI"]).query
        fields = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        if "HTTP_AUTHORIZATION" in environ:
            found = AUTHORIZATION.fullmatch(environ["HTTP_AUTHORIZATION"].strip())
            if found is None:
                raise RefusedRequestError("malformed", f"The authorization header must be {ALGORITHM} Credential=…")
            credential, headers, signature = found.groups()
            stamp, expires = _header(environ, "x-amz-date"), None
        elif fields.get("X-Amz-Algorithm") == ALGORITHM:
            credential, headers = fields.get("X-Amz-Credential", ""), fields.get("X-Amz-SignedHeaders", "")
            signature, stamp = fields.get("X-Amz-Signature", ""), fields.get("X-Amz-Date", "")
            expires = _expires(fields.get("X-Amz-Expires", ""))
            query = "&".join(pair for pair in query.split("&") if not pair.startswith("X-Amz-Signature="))
        else:
            raise RefusedRequestError("missing", "Access Denied")
        scope = SCOPE.fullmatch(credential)
        if scope is None:
            raise RefusedRequestError("malformed", "The credential must be KEY/DATE/REGION/SERVICE/aws4_request.")
        key, date, region, service = scope.groups()
        time = _time(stamp)
        if not stamp.startswith(date):
            raise RefusedRequestError("malformed", f"Date in Credential scope does not match the request's: {date}")
        return cls(key, time, region, service, tuple(headers.split(";")), signature, query, expires)

    def check_time(self, now: datetime) -> None:
        """Check the clock of the client, or the lifetime of a presigned URL.

        Raises:
            RefusedRequestError: with AWS's words.
        """
        if self.expires_seconds is None:
            if abs(now - self.time) > MAX_SKEW:
                raise RefusedRequestError(
                    "time", "The difference between the request time and the current time is too large."
                )
        elif now > self.time + timedelta(seconds=self.expires_seconds):
            raise RefusedRequestError("expired", "Request has expired")
        elif self.time - now > MAX_SKEW:
            raise RefusedRequestError("expired", "Request is not valid yet")

    def check_headers(self, environ: Environ) -> None:
        """Check that the signature covers the host and each of AWS's own headers.

        Raises:
            RefusedRequestError: naming a header that it does not cover.
        """
        signed = {environ_key_for_header(name) for name in self.headers}
        for key in environ:
            if (key.startswith("HTTP_X_AMZ_") or key == "HTTP_HOST") and key not in signed:
                name = key.removeprefix("HTTP_").replace("_", "-").lower()
                raise RefusedRequestError("forbidden", f"There were headers present which were not signed: {name}")

    def signer(self, pair: KeyPair) -> _Signer:
        """Botocore's signer, for the key and the scope that the request names."""
        kind = _S3Signer if self.service == "s3" else _Signer
        return kind(Credentials(pair.access_key_id, pair.secret_access_key), self.service, self.region)

    def request(self, environ: Environ, payload: str) -> AWSRequest:
        """The request as botocore signs it.

        Args:
            payload: hash of the body, or the word that stands for it, where no signed header has it.
        """
        path = urlsplit(environ["RAW_URI"]).path
        url = f"http://{environ['HTTP_HOST']}{path}?{self.query}"
        headers = {name: _header(environ, name) for name in self.headers}
        request = AWSRequest(environ["REQUEST_METHOD"], url, headers=headers)
        request.context |= {"timestamp": self.time.strftime(SIGV4_TIMESTAMP), "payload": payload}
        return request

    def authorization(self) -> str:
        """The Authorization header by which moto finds the service and the region of a request."""
        scope = f"{self.access_key_id}/{self.time:%Y%m%d}/{self.region}/{self.service}/aws4_request"
        return f"{ALGORITHM} Credential={scope}, SignedHeaders={';'.join(self.headers)}, Signature={self.signature}"


class _Signer(SigV4Auth):  # type: ignore[misc]
    """botocore's signer, for the headers and the payload that a request names."""

    def headers_to_sign(self, request: AWSRequest) -> HTTPHeaders:
        """All headers that the request has been given."""
        return request.headers

    def payload(self, request: AWSRequest) -> str:
        """The hash of the body, which is known already."""
        return str(request.context["payload"])


class _S3Signer(_Signer, S3SigV4Auth):  # type: ignore[misc]
    """S3's signer, which takes paths as they are."""


def verify(environ: Environ, keys: Keys, now: datetime) -> str:
    """Find out who signed a request (the ARN of a user or role), and read its body.

    A request that is signed in its URL gets the Authorization header that it lacks: the applications behind find
    service and region there.

    Raises:
        RefusedRequestError: if nobody whom we know has signed all of it, or has not done so in time.
    """
    fields = parse_qs(urlsplit(environ["RAW_URI"]).query)
    if "HTTP_AUTHORIZATION" not in environ and "AWSAccessKeyId" in fields:
        return _verify_version_2(environ, {name: values[0] for name, values in fields.items()}, keys, now)
    signed = Signed.parse(environ)
    principal, pair = _owner(keys, signed.access_key_id)
    signed.check_time(now)
    signed.check_headers(environ)
    declared = _header(environ, "x-amz-content-sha256")
    body: bytes | None = None
    if signed.expires_seconds is not None and signed.service == "s3":
        declared = declared or UNSIGNED_PAYLOAD
    elif not declared:
        # Without the header the signature covers the body itself.
        body = _read(environ)
    request = signed.request(environ, declared or hashlib.sha256(body or b"").hexdigest())
    signer = signed.signer(pair)
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    if not hmac.compare_digest(expected, signed.signature):
        raise RefusedRequestError(
            "signature",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method.",
        )
    if body is None:
        # Read when the signature has been checked: nobody else makes this process hold a large body.
        body = _read(environ)
        _check_payload(declared, body, signer, signed, request)
    _replace_body(environ, body)
    environ["HTTP_AUTHORIZATION"] = signed.authorization()
    return principal


def _check_payload(declared: str, body: bytes, signer: _Signer, signed: Signed, request: AWSRequest) -> None:
    """Check a body against what the signed header says about it.

    Raises:
        RefusedRequestError: if they differ, or the header says what the service does not take.
    """
    if declared in (UNSIGNED_PAYLOAD, UNSIGNED_CHUNKS) and signed.service == "s3":
        return
    if declared in (SIGNED_CHUNKS, SIGNED_CHUNKS_AND_TRAILER) and signed.service == "s3":
        check_chunks(body, signer, request, signed.signature, has_trailer=declared == SIGNED_CHUNKS_AND_TRAILER)
    elif not re.fullmatch("[0-9a-f]{64}", declared):
        raise RefusedRequestError("unsupported", f"x-amz-content-sha256: {declared} is not rehearsed")
    elif not hmac.compare_digest(declared, hashlib.sha256(body).hexdigest()):
        raise RefusedRequestError(
            "payload", "The provided 'x-amz-content-sha256' header does not match what was computed."
        )


def check_chunks(body: bytes, signer: SigV4Auth, request: AWSRequest, seed: str, *, has_trailer: bool) -> None:
    """Check the signature of each chunk, which covers the one before, and of the trailer.

    Args:
        request: with its time in the context.
        seed: signature of the headers.

    Raises:
        RefusedRequestError: if one of them is wrong, or the body ends too early.
    """
    # A body without the last, empty chunk is one whose end was cut off.
    previous, ended = seed, False
    stream = io.BytesIO(body)
    start = "\n".join([request.context["timestamp"], signer.credential_scope(request)])
    for chunk, signature in _chunks(stream):
        covered = [f"{ALGORITHM}-PAYLOAD", start, previous, EMPTY_HASH, hashlib.sha256(chunk).hexdigest()]
        previous = _next_signature(signer, request, covered, signature)
        ended = not chunk
    if not ended:
        raise RefusedRequestError("payload", "The chunked body ends before its last chunk.")
    if has_trailer:
        lines = [line.strip() for line in stream.read().decode("latin-1").split("\n") if line.strip()]
        signatures = [line.partition(":")[2] for line in lines if line.startswith("x-amz-trailer-signature:")]
        trailer = "".join(f"{line}\n" for line in lines if not line.startswith("x-amz-trailer-signature:"))
        covered = ["AWS4-HMAC-SHA256-TRAILER", start, previous, hashlib.sha256(trailer.encode("latin-1")).hexdigest()]
        _next_signature(signer, request, covered, signatures[0] if signatures else "")
    elif stream.read().strip():
        raise RefusedRequestError("payload", "The chunked body goes on after its last chunk.")


def _next_signature(signer: SigV4Auth, request: AWSRequest, covered: list[str], given: str) -> str:
    expected = str(signer.signature("\n".join(covered), request))
    if not hmac.compare_digest(expected.encode(), given.encode("latin-1")):
        raise RefusedRequestError("signature", "The chunk signature we calculated does not match the one you provided.")
    return expected


def _chunks(stream: io.BytesIO) -> Iterator[tuple[bytes, str]]:
    """Each chunk and its signature, up to the empty one."""
    while line := stream.readline(MAX_CHUNK_HEADER_BYTES):
        found = re.fullmatch(rb"([0-9a-fA-F]{1,16});chunk-signature=([0-9a-f]{64})\r\n", line)
        if found is None:
            raise RefusedRequestError("payload", "A chunk must begin with SIZE;chunk-signature=SIGNATURE.")
        size = int(found[1], 16)
        chunk = stream.read(size)
        if len(chunk) != size:
            raise RefusedRequestError("payload", "The chunked body ends within a chunk.")
        if size and stream.read(2) != b"\r\n":
            raise RefusedRequestError("payload", "A chunk must end with a line break.")
        yield chunk, found[2].decode()
        if not size:
            return


def _verify_version_2(environ: Environ, fields: dict[str, str], keys: Keys, now: datetime) -> str:
    """Check a URL of S3 that was presigned by Signature Version 2."""
    principal, pair = _owner(keys, fields["AWSAccessKeyId"])
    expires = fields.get("Expires", "")
    if not re.fullmatch(r"\d{1,12}", expires):
        raise RefusedRequestError("malformed", "Expires must be a number of seconds since 1970.")
    if now.timestamp() > int(expires):
        raise RefusedRequestError("expired", "Request has expired")
    signer = HmacV1Auth(Credentials(pair.access_key_id, pair.secret_access_key))
    own = [key for key in environ if key.startswith("HTTP_X_AMZ_")]
    headers = AWSRequest(headers={key.removeprefix("HTTP_").replace("_", "-"): environ[key] for key in own}).headers
    custom = signer.canonical_custom_headers(headers)
    resource = signer.canonical_resource(urlsplit(environ["RAW_URI"]))
    standard = [_header(environ, "content-md5"), _header(environ, "content-type"), expires]
    lines = [environ["REQUEST_METHOD"], *standard, *([custom] if custom else []), resource]
    if not hmac.compare_digest(signer.sign_string("\n".join(lines)).encode(), fields.get("Signature", "").encode()):
        raise RefusedRequestError(
            "signature",
            "The request signature we calculated does not match the signature you provided. Check your key and signing "
            "method.",
        )
    _replace_body(environ, _read(environ))
    # moto finds S3 by it, and nothing else: a path such as /sagemaker_us-east-1/ names a service without it.
    scope = f"{pair.access_key_id}/{now:%Y%m%d}/us-east-1/s3/aws4_request"
    environ["HTTP_AUTHORIZATION"] = f"{ALGORITHM} Credential={scope}, SignedHeaders=host, Signature=version-2"
    return principal


def _owner(keys: Keys, access_key_id: str) -> tuple[str, KeyPair]:
    found = keys.owner(access_key_id)
    if found is None:
        raise RefusedRequestError("key", "The security token included in the request is invalid.")
    return found


def _header(environ: Environ, name: str) -> str:
    return str(environ.get(environ_key_for_header(name), ""))


def _time(stamp: str) -> datetime:
    try:
        return datetime.strptime(stamp, SIGV4_TIMESTAMP).replace(tzinfo=UTC)
    except ValueError as error:
        raise RefusedRequestError(
            "malformed", f"X-Amz-Date must be in the form YYYYMMDDTHHMMSSZ, got {stamp}"
        ) from error


def _expires(text: str) -> int:
    if not re.fullmatch(r"\d{1,7}", text) or not 1 <= int(text) <= MAX_EXPIRES_SECONDS:
        raise RefusedRequestError("malformed", f"X-Amz-Expires must be 1 to {MAX_EXPIRES_SECONDS} seconds")
    return int(text)


def _read(environ: Environ) -> bytes:
    try:
        return bytes(get_input_stream(environ).read())
    except ClientDisconnected as error:
        # werkzeug takes this error for a client that went away.
        raise ConnectionAbortedError("the client left before its body had come") from error


def _replace_body(environ: Environ, body: bytes) -> None:
    environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
