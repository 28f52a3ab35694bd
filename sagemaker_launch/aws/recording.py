"""Records the shapes of AWS's answers, if the environment names a folder for them (`live-check`)."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sagemaker_launch.aws.response_shapes import Answer, Shape, mark_late, parse, shape_of, state_of

FOLDER = "SAGEMAKER_LAUNCH_SHAPES"
"""Variable with the folder."""
Shapes = dict[str, dict[str, Shape]]
"""By operation, such as `sagemaker.ListTags`, and by state."""


class Recording:
    """The shapes of the answers that one process gets."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"{os.getpid()}.jsonl"
        self._lock, self._request = threading.Lock(), threading.local()
        self._last: dict[tuple[str, str], Answer] = {}
        """The last answer to a request, by a hash of it and the state that the answer told of."""

    def attach(self, client: Any) -> None:
        """Record the answers of a client."""
        client.meta.events.register("before-send", self._note_request)
        client.meta.events.register("before-parse", self._note_answer)

    def _note_request(self, request: Any, **_: Any) -> None:
        body = request.body if isinstance(request.body, bytes) else b""
        self._request.digest = hashlib.sha256(request.url.encode() + body).hexdigest()

    def _note_answer(self, operation_model: Any, response_dict: Mapping[str, Any], **_: Any) -> None:
        service = operation_model.service_model.service_name
        operation, code = f"{service}.{operation_model.name}", response_dict["status_code"]
        model = operation_model.output_shape
        if operation_model.has_streaming_output and code < 300:
            found, state = Shape(seen=1), ""  # photos and archives
        else:
            found, state = self._shape(response_dict["body"], code, model)
        line = json.dumps({"operation": operation, "state": state, "shape": found.to_json()})
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _shape(self, body: bytes, code: int, model: Any) -> tuple[Shape, str]:
        """The shape of an answer and the state that it tells of; of a refusal AWS's code."""
        try:
            answer = parse(body, model if code < 300 else None)
        except ValueError:
            return Shape({"unreadable"}, seen=1), f"{code}"
        if code >= 300:
            refused = answer if isinstance(answer, dict) else {}
            reason = refused.get("__type") or refused.get("Code") or ""
            return shape_of(answer, None), f"{code} {str(reason).rpartition('#')[2]}".strip()
        found, state = shape_of(answer, model), state_of(answer)
        key = (self._request.digest, state)
        if key in self._last:
            mark_late(self._last[key], answer, found)
        self._last[key] = answer
        return found, state


_recordings: dict[Path, Recording] = {}


def record(client: Any) -> None:
    """Record the answers of a client, if the environment says so."""
    if folder := os.environ.get(FOLDER):
        _recordings.setdefault(Path(folder), Recording(Path(folder))).attach(client)


def read_shapes(folder: Path) -> Shapes:
    """All that was recorded in a folder."""
    shapes: Shapes = {}
    for operation, state, shape in _lines(folder):
        shapes.setdefault(operation, {}).setdefault(state, Shape()).add(shape)
    return shapes


def _lines(folder: Path) -> Iterator[tuple[str, str, Shape]]:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            yield found["operation"], found["state"], Shape.from_json(found["shape"])
