"""HTTP: SageMaker's GET /ping and POST /invocations, and GET /metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lightning_modules.inference import ATTRIBUTES_HEADER, MAX_BODY, BadImageError, BadTypeError, TooLargeError
from sagemaker_launch.serving.service import STATES, Record, RefusedError, Service

READ = ["GET", "HEAD"]
"""Methods of pages that may be read: monitors use HEAD, for which uvicorn omits the body."""
GONE = 499
"""nginx's status for a client that closed its connection; it appears in the log only."""

log = logging.getLogger("serving")


def make_app(service: Service) -> FastAPI:
    """The routes of the server."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/ping", methods=READ)
    async def ping() -> Response:
        if service.state != "ready":
            return _refusal(503, STATES[service.state])
        return _json(200, json.dumps({"status": "ready"}))

    @app.api_route("/metrics", methods=READ)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        started, record = time.perf_counter(), Record()
        response = await _respond(request, service, record)
        seconds = time.perf_counter() - started
        service.metrics.requests.labels(str(response.status_code)).inc()
        service.metrics.seconds.observe(seconds)
        log.info(_line(response, record, seconds))
        return response

    @app.exception_handler(HTTPException)
    async def no_such_thing(request: Request, error: HTTPException) -> Response:
        sentence = (
            f"{request.method} {request.url.path[:100]} is not served: GET /ping, POST /invocations, GET /metrics"
        )
        return _refusal(error.status_code, sentence, dict(error.headers or {}))

    return app


async def _respond(request: Request, service: Service, record: Record) -> Response:
    settings, headers = service.settings, request.headers
    try:
        _require_plain(headers.get("content-encoding", ""))
        with service.admitted():
            async with asyncio.timeout(settings.timeout_seconds):
                body = await _read_body(request, settings.body_timeout_seconds)
                record.bytes = len(body)
                work = service.answer(
                    body,
                    headers.get("content-type", ""),
                    headers.get("accept", ""),
                    headers.get(ATTRIBUTES_HEADER, ""),
                    record,
                )
                return _json(*await _while_connected(request, work))
    except (RefusedError, BadImageError) as error:
        return _refusal(error.status, str(error))
    except TimeoutError:
        return _refusal(503, f"the request was not answered within {settings.timeout_seconds:g} s: try again later")
    except ClientDisconnect:
        return _refusal(GONE, "the client went away")
    except Exception:
        log.exception("a request failed")
        return _refusal(500, "the server failed; its log says why")


def _require_plain(encoding: str) -> None:
    """Refuse a compressed body: a small one can expand to gigabytes, and photos are compressed already.

    Raises:
        BadTypeError: if the body is compressed.
    """
    if encoding.strip().lower() not in ("", "identity"):
        raise BadTypeError(f"the Content-Encoding {encoding[:100]} is not supported: send the body as it is")


async def _read_body(request: Request, timeout_seconds: float) -> bytes:
    """The body, of which at most MAX_BODY is in memory; uvicorn reads and drops the rest.

    Raises:
        TooLargeError: as soon as the body exceeds it.
        RefusedError: if the body takes too long to arrive.
    """
    too_large = TooLargeError(f"the request has more than {MAX_BODY} bytes, which is as many as are taken")
    if int(request.headers.get("content-length", 0)) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > MAX_BODY:
                    raise too_large
                body += chunk
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {timeout_seconds:g} s") from None
    return bytes(body)


async def _while_connected(request: Request, work: Coroutine[object, object, tuple[int, str]]) -> tuple[int, str]:
    """Do the work, unless the client disconnects.

    Raises:
        ClientDisconnect: if the client disconnects.
    """

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(leaves())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _json(status: int, text: str) -> Response:
    return Response(text, status, media_type="application/json")


def _refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    response = Response(json.dumps({"error": sentence}), status, headers, "application/json")
    if status == 503:
        response.headers["Retry-After"] = "1"
    if status == 408:
        response.headers["Connection"] = "close"  # the rest of the body may never come
    return response


def _line(response: Response, record: Record, seconds: float) -> str:
    # For the body, a decode thread and the network.
    waited = seconds - record.decode_seconds - record.network_seconds
    return json.dumps(
        {
            "status": response.status_code,
            "bytes": record.bytes,
            "images": record.images,
            "queue_ms": round(1000 * waited, 1),
            "decode_ms": round(1000 * record.decode_seconds, 1),
            "network_ms": round(1000 * record.network_seconds, 1),
            "total_ms": round(1000 * seconds, 1),
            "batch_size": record.batch_size,
        }
    )
