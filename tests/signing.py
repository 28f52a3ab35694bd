"""Requests to the rehearsal that no SDK has an operation for, signed by botocore as an SDK would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import requests
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def signed_headers(
    environment: Mapping[str, str], method: str, url: str, service: str, body: bytes = b"", **headers: str
) -> dict[str, str]:
    """The headers of a request, with a signature for them and for the body.

    Args:
        environment: with the variables of a key.
        headers: more headers, with `_` for `-`; `x_amz_content_sha256` in place of the hash of the body.
    """
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = AWSRequest(method, url, headers=named, data=body)
    credentials = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    kind = S3SigV4Auth if service == "s3" and "x-amz-content-sha256" not in named else SigV4Auth
    kind(credentials, service, "us-east-1").add_auth(request)
    return dict(request.headers.items())


def control(environment: Mapping[str, str], method: str, path: str) -> dict[str, Any]:
    """Call an address below /rehearsal/ and return the answer."""
    url = f"{environment['AWS_ENDPOINT_URL']}/rehearsal/{path}"
    answer = requests.request(method, url, headers=signed_headers(environment, method, url, "rehearsal"), timeout=30)
    answer.raise_for_status()
    found: dict[str, Any] = json.loads(answer.content)
    return found
