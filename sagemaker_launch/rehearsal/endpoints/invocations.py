"""One invocation of an endpoint: to the container and back, with AWS's errors, and captured if requested."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from moto.utilities.utils import get_partition

from sagemaker_launch.rehearsal.endpoints.endpoints import Endpoint, Request, Variant
from sagemaker_launch.rehearsal.endpoints.serving_process import LOG_GROUP, Reply
from sagemaker_launch.rehearsal.machine.objects import DataError, Objects, Uri

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
MAX_BODY_BYTES = 6 * 1024 * 1024
"""Of a request and of an answer (botocore's model of InvokeEndpoint, 2026). AWS's hosting FAQ says 25 MB: what fits
here fits by both."""
MAX_SERVERLESS_BODY_BYTES = 4 * 1024 * 1024
"""4 MB (AWS's hosting FAQ, 2026)."""
CONSOLES = {"aws-cn": "console.amazonaws.cn", "aws-us-gov": "console.amazonaws-us-gov.com"}
"""Hosts of AWS's console by partition, behind the region."""
TIMEOUT_SECONDS = 60.0
"""AWS API reference, InvokeEndpoint, 2025."""

log = logging.getLogger(__name__)


class InvocationError(Exception):
    """An error that the runtime answers with."""

    def __init__(self, status: int, code: str | None, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.body: dict[str, Any] = {"Message": message, **fields}


@dataclass(frozen=True)
class Invocation:
    """What a client sends."""

    body: bytes
    headers: Mapping[str, str]
    """For the container: content type, accept, custom attributes."""
    target_variant: str | None = None
    inference_id: str | None = None
    event_id: str = field(default_factory=lambda: str(uuid.uuid4()))


class Invoker:
    """Sends invocations to the endpoints of one account in one region."""

    def __init__(self, account: str, region: str, objects: Objects) -> None:
        self._account, self._region, self.objects = account, region, objects

    def invoke(self, endpoint: Endpoint, invocation: Invocation, timeout_seconds: float) -> tuple[Variant, Reply]:
        """Call the container that the traffic weights, or the client, choose.

        Raises:
            InvocationError: if there is no answer, or the answer is an error.
        """
        with endpoint.routed(invocation.target_variant) as variant:
            if variant is None:
                raise InvocationError(
                    400,
                    "ValidationError",
                    f"Variant {invocation.target_variant} not found for Endpoint {endpoint.name}",
                )
            if variant.serverless is not None and variant.running > variant.serverless["MaxConcurrency"]:
                raise InvocationError(429, "ThrottlingException", "Rate exceeded")
            reply = self._ask(endpoint, variant, invocation, timeout_seconds)
        capture = endpoint.config.request.get("DataCaptureConfig", {})
        # Sampling is not seeded: captured data need not be equal in two rehearsals.
        if capture.get("EnableCapture", bool(capture)) and random.random() * 100 < capture["InitialSamplingPercentage"]:
            self._capture(capture, endpoint, variant, invocation, reply)
        return variant, reply

    def _ask(self, endpoint: Endpoint, variant: Variant, invocation: Invocation, timeout_seconds: float) -> Reply:
        try:
            reply = variant.process.ask(invocation.body, invocation.headers, timeout_seconds)
        except TimeoutError as error:
            raise self.model_error(
                endpoint,
                0,
                "Your invocation timed out while waiting for a response from container primary. Review the latency "
                "metrics for each container in Amazon CloudWatch, resolve the issue, and try again.",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self.model_error(endpoint, 503, f"the container does not answer ({error!r})") from error
        if not 200 <= reply.status < 300:
            raise self.model_error(endpoint, reply.status, reply.body.decode(errors="replace"))
        if len(reply.body) > MAX_BODY_BYTES:
            raise self.model_error(
                endpoint, 0, f"the answer has {len(reply.body)} bytes, at most {MAX_BODY_BYTES} are passed on"
            )
        return reply

    def model_error(self, endpoint: Endpoint, status: int, message: str) -> InvocationError:
        """ModelError, as AWS words it."""
        group, side = LOG_GROUP + endpoint.name, "client" if 400 <= status < 500 else "server"
        part = get_partition(self._region)
        host = CONSOLES.get(part, "console.aws.amazon.com")
        console = f"https://{self._region}.{host}/cloudwatch/home?region={self._region}"
        return InvocationError(
            424,
            "ModelError",
            f'Received {side} error ({status}) from primary with message "{message}". See {console}#logEventViewer:'
            f"group={group} in account {self._account} for more information.",
            ErrorCode=f"{side.upper()}_ERROR_FROM_MODEL",
            LogStreamArn=f"arn:{part}:logs:{self._region}:{self._account}:log-group:{group}",
            OriginalMessage=message,
            OriginalStatusCode=status,
        )

    def _capture(
        self, config: Request, endpoint: Endpoint, variant: Variant, invocation: Invocation, reply: Reply
    ) -> None:
        # Layout and fields: AWS developer guide, "Capture data from real-time endpoint", 2025. AWS collects many
        # records per object.
        now = datetime.now(UTC)
        modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
        headers, kinds = config.get("CaptureContentTypeHeader", {}), {}
        if "Input" in modes:
            kinds["endpointInput"] = ("INPUT", invocation.headers.get("Content-Type", ""), invocation.body)
        if "Output" in modes:
            kinds["endpointOutput"] = ("OUTPUT", reply.headers.get("Content-Type", ""), reply.body)
        record = {
            "captureData": {name: _captured(headers, *each) for name, each in kinds.items()},
            "eventMetadata": {
                "eventId": invocation.event_id,
                **({"inferenceId": invocation.inference_id} if invocation.inference_id else {}),
                **({"customAttributes": [invocation.headers[ATTRIBUTES]]} if ATTRIBUTES in invocation.headers else {}),
                "inferenceTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            "eventVersion": "0",
        }
        name = f"{now:%Y/%m/%d/%H/%M-%S}-{now.microsecond // 1000:03}-{uuid.uuid4()}.jsonl"
        try:
            place = Uri.parse(config["DestinationS3Uri"]) / endpoint.name / variant.name / name
            self.objects.put(place, json.dumps(record).encode() + b"\n")
        except DataError as error:
            log.warning("endpoint %s: nothing captured: %s", endpoint.name, error)


def _captured(headers: Request, mode: str, content_type: str, body: bytes) -> dict[str, str]:
    encoding = "BASE64"
    for kind, field_name in (("JSON", "JsonContentTypes"), ("CSV", "CsvContentTypes")):
        if content_type in headers.get(field_name, ()):
            encoding = kind
    data = base64.b64encode(body).decode() if encoding == "BASE64" else body.decode(errors="replace")
    return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}
