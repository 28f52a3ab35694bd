"""Ask an endpoint, or a server at home, what is on photos."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from botocore.exceptions import BotoCoreError, ClientError

from experiments.console import progress
from experiments.errors import CommandError, UserError
from lightning_modules.listing import class_name, in_one_spelling, printable, why_no_photo
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.client import error_code
from sagemaker_launch.aws.resources import CONFIG, ENDPOINT
from sagemaker_launch.aws.retries import AT_START_SECONDS, WAIT_AND_RETRY
from sagemaker_launch.endpoints.fleet import kind_of
from sagemaker_launch.endpoints.requests import async_uri
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.shipping.storage import encryption

MAX_BODY, MAX_SERVERLESS_BODY = 6 * 1024 * 1024, 4 * 1000 * 1000
"""Bytes that an endpoint takes, and a serverless one.

Our server takes 6 MiB, the limit of botocore's model of InvokeEndpoint. AWS's hosting FAQ says 25 MB, and 4 MB for
serverless endpoints (read 2026-11). The smaller of two numbers is right by both.
"""
SENT_SIDE = 2048
"""Long side in pixels to which a photo with more bytes is scaled; networks look at a few hundred."""
TRIES = 6
"""How often a busy endpoint is asked, with pauses that double from a quarter of a second."""
ASYNC_TIMEOUT_SECONDS = 900.0
"""How long an async endpoint may take; its first machine has to start."""
ALL_CLASSES = 99_999
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MAGIC = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"RIFF": "image/webp"}


class QueryError(CommandError):
    """No answer, or a refusal; the message is one plain sentence."""


class BusyError(QueryError):
    """It may answer later."""


class NoAnswerError(QueryError):
    """The model was not reached: AWS refused the call, or did not answer."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    content: Any
    """Its JSON."""
    latency_ms: float


class Target(Protocol):
    """Something that answers about photos."""

    @property
    def max_body(self) -> int:
        """Bytes of a photo that it takes."""
        ...

    def ask(self, body: bytes, content_type: str, *, top_k: int | None = None) -> Answer:
        """Send one photo.

        Args:
            top_k: how many classes to name; None asks for the list of logits.

        Raises:
            QueryError: if there is no answer.
        """
        ...


@dataclass(frozen=True)
class EndpointTarget:
    """A realtime or serverless endpoint."""

    runtime: Any
    name: str
    max_body: int = MAX_BODY

    def ask(self, body: bytes, content_type: str, *, top_k: int | None = None) -> Answer:
        """Send one photo and wait for the answer."""

        def once() -> Any:
            try:
                given = self.runtime.invoke_endpoint(
                    EndpointName=self.name, ContentType=content_type, Body=body, **_attributes(top_k)
                )
                return json.loads(given["Body"].read())
            except ClientError as error:
                status = error.response.get("OriginalStatusCode")  # of the model's own answer
                code = error_code(error)
                if status == 503 or "Throttl" in code or code in WAIT_AND_RETRY:
                    raise BusyError(_sentence(error)) from error
                raise (NoAnswerError if status is None else QueryError)(_sentence(error)) from error
            except ValueError as error:
                raise NoAnswerError(f"endpoint {self.name} gives no JSON: is there a proxy before it?") from error
            except BotoCoreError as error:
                raise NoAnswerError(f"endpoint {self.name} gives no answer: {error}") from error

        return _timed(once)


@dataclass(frozen=True)
class AsyncTarget:
    """An endpoint that takes photos from S3 and puts answers there."""

    runtime: Any
    s3: Any
    name: str
    inputs: str
    """s3:// folder of what is sent."""
    encryption: Mapping[str, str] = field(default_factory=dict)
    """Further fields of an upload."""
    poll_seconds: float = 1.0
    max_body: int = MAX_BODY

    def ask(self, body: bytes, content_type: str, *, top_k: int | None = None) -> Answer:
        """Put one photo into the queue and wait for the answer."""
        place = urlsplit(f"{self.inputs}/{hashlib.sha256(body).hexdigest()}")
        self.s3.put_object(Bucket=place.netloc, Key=place.path[1:], Body=body, **self.encryption)

        def once() -> Any:
            given = self.runtime.invoke_endpoint_async(
                EndpointName=self.name, InputLocation=place.geturl(), ContentType=content_type, **_attributes(top_k)
            )
            until = time.monotonic() + ASYNC_TIMEOUT_SECONDS
            while time.monotonic() < until:
                if (answer := self._read(given["OutputLocation"])) is not None:
                    return json.loads(answer)
                if (refusal := self._read(given["FailureLocation"])) is not None:
                    raise QueryError(_plain(refusal))
                time.sleep(self.poll_seconds)
            raise QueryError(f"endpoint {self.name} gave no answer within {ASYNC_TIMEOUT_SECONDS:g} seconds")

        return _timed(once)

    def _read(self, uri: str) -> str | None:
        place = urlsplit(uri)
        listed = self.s3.list_objects_v2(Bucket=place.netloc, Prefix=place.path[1:])
        if not listed.get("KeyCount"):
            return None
        body: bytes = self.s3.get_object(Bucket=place.netloc, Key=place.path[1:])["Body"].read()
        return body.decode(errors="replace")


@dataclass(frozen=True)
class UrlTarget:
    """A server of our own, such as `serve` starts at home."""

    url: str
    max_body: int = MAX_BODY

    def ask(self, body: bytes, content_type: str, *, top_k: int | None = None) -> Answer:
        """Send one photo and wait for the answer."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if top_k is not None:
            headers["X-Amzn-SageMaker-Custom-Attributes"] = f"top_k={top_k}"

        def once() -> Any:
            try:
                answer = requests.post(f"{self.url.rstrip('/')}/invocations", body, headers=headers, timeout=60)
            except requests.RequestException as error:
                raise QueryError(f"{self.url} gives no answer: {type(error).__name__}") from error
            if answer.status_code != 200:
                raise (BusyError if answer.status_code == 503 else QueryError)(_plain(answer.text))
            return answer.json()

        return _timed(once)


def open_target(settings: CloudSettings, name: str, kind: str, *, patience_seconds: float = AT_START_SECONDS) -> Target:
    """An endpoint whose kind is known.

    Args:
        patience_seconds: time in which a call is repeated that AWS does not answer.
    """
    # AWS cuts a request after 60 seconds; the first one of a serverless endpoint starts a machine.
    runtime = aws.client("sagemaker-runtime", settings, patience_seconds=patience_seconds, read_timeout=70)
    if kind != "async":
        return EndpointTarget(runtime, name, MAX_SERVERLESS_BODY if kind == "serverless" else MAX_BODY)
    s3 = aws.client("s3", settings, patience_seconds=patience_seconds)
    return AsyncTarget(runtime, s3, name, async_uri(settings, name, "in"), encryption(settings))


def endpoint_target(settings: CloudSettings, name: str) -> Target:
    """The endpoint of a name.

    Raises:
        UserError: if there is none.
    """
    sagemaker = aws.client("sagemaker", settings)
    described = ENDPOINT.find(sagemaker, name)
    if described is None:
        raise UserError(f"NAME must be an endpoint of this account and region, found none called {name}")
    config = CONFIG.describe(sagemaker, described[CONFIG.name])
    return open_target(settings, name, kind_of(config))


@dataclass(frozen=True)
class PhotoAnswer:
    """What an endpoint makes of one photo."""

    image: Path
    classes: tuple[tuple[str, float], ...] = ()
    """Class names and probabilities, the most probable first."""
    true_name: str | None = None
    """The class that the photo's folder or name tells."""
    latency_ms: float = 0.0
    error: str = ""
    """Why there is no answer."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"image": str(self.image)}


def query_photos(target: Target, photos: Sequence[Path], *, top_k: int, parallel: int) -> list[PhotoAnswer]:
    """Ask for photos, some at once; one without an answer does not stop the others."""

    def ask(photo: Path) -> PhotoAnswer:
        try:
            answer = target.ask(*read_photo(photo, target.max_body), top_k=ALL_CLASSES)
            (named,) = answer.content["predictions"]
        except OSError as error:
            return PhotoAnswer(photo, error=f"the file can't be opened: {error.strerror}")
        except (QueryError, ValueError) as error:
            return PhotoAnswer(photo, error=str(error))
        classes = tuple((one["name"], one["score"]) for one in named["classes"])
        known = true_name(photo, [name for name, _ in classes])
        return PhotoAnswer(photo, classes[:top_k], known, answer.latency_ms)

    answers = []
    with ThreadPoolExecutor(parallel) as pool, progress("asking", len(photos), "photo") as advance:
        for answer in pool.map(ask, photos):
            answers.append(answer)
            advance(1)
    return answers


def read_photo(path: Path, max_body: int = MAX_BODY) -> tuple[bytes, str]:
    """The bytes to send and their content type; a photo of more than `max_body` bytes is scaled down.

    Raises:
        UserError: if it is none of the kinds that an endpoint takes.
    """
    if why := why_no_photo(path):
        raise UserError(why)
    data = path.read_bytes()
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None:
        raise UserError("the file is not a JPEG, PNG or WebP image")
    if len(data) <= max_body:
        return data, kind
    from lightning_modules.inference import MAX_PIXELS, open_image  # torch takes four seconds to import

    # As the endpoint would decode it, but for its limit: what it gets is small.
    smaller = open_image(data, SENT_SIDE, max_pixels=4 * MAX_PIXELS)
    smaller.thumbnail((SENT_SIDE, SENT_SIDE))
    written = io.BytesIO()
    smaller.save(written, "JPEG", quality=95)
    return written.getvalue(), "image/jpeg"


def true_name(photo: Path, class_names: Sequence[str]) -> str | None:
    """The class that a photo's folder (`001.Affenpinscher/`) or name (`Affenpinscher_00123.jpg`) tells."""
    plain = {_plain_name(name): name for name in class_names}
    folder = plain.get(_plain_name(photo.parent.name))
    if folder is not None:
        return folder
    stem = _plain_name(re.sub(r"[_\s-]*\d+$", "", photo.stem))
    return plain.get(stem)


def answer_table(answers: Sequence[PhotoAnswer]) -> str:
    """Names and scores for a person, and how long it took."""
    lines = []
    for one in answers:
        known = f" (is {one.true_name})" if one.true_name else ""
        lines.append(f"{printable(one.image)}{f': {one.error}' if one.error else known}")
        lines += [f"  {score:7.2%}  {name}" for name, score in one.classes]
    latencies = sorted(one.latency_ms for one in answers if not one.error)
    if latencies:
        lines.append(f"{len(latencies)} answers, median {latencies[len(latencies) // 2]:.0f} ms")
    labelled = [one for one in answers if one.true_name and one.classes]
    if labelled:
        right = sum(one.classes[0][0] == one.true_name for one in labelled)
        lines.append(f"{right} of {len(labelled)} with a known name are right")
    return "\n".join(lines)


def _plain_name(name: str) -> str:
    """`001.Welsh_springer-spaniel` and `Welsh springer spaniel` alike."""
    return re.sub(r"[^a-z0-9]+", " ", class_name(in_one_spelling(name)).lower()).strip()


def _attributes(top_k: int | None) -> dict[str, str]:
    return {} if top_k is None else {"CustomAttributes": f"top_k={top_k}"}


def _timed(once: Any) -> Answer:
    """Send until the endpoint is not busy, and measure the last try."""
    for number in range(TRIES):
        started = time.perf_counter()
        try:
            return Answer(once(), 1000 * (time.perf_counter() - started))
        except BusyError:
            if number == TRIES - 1:
                raise
            time.sleep(0.25 * 2**number)
    raise AssertionError("the last try returns or raises")


def _sentence(error: ClientError) -> str:
    """What the model said, or what AWS says."""
    said = error.response.get("OriginalMessage")
    return _plain(said) if said else str(error)


def _plain(text: str) -> str:
    """The sentence in `{"error": sentence}`, or the first line of anything else."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return (text.strip().splitlines() or ["no reason is given"])[0][:500]
