"""`live-check` against the rehearsal, and behind a proxy that changes answers as AWS might."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sagemaker_launch.aws.recording import Recording, Shapes, read_shapes
from sagemaker_launch.aws.response_shapes import Shape
from sagemaker_launch.aws.shape_differences import Difference, differences, operation_model
from sagemaker_launch.live_check import REVEALING, read_expected
from tests.bad_days import Fault, bad_day
from tests.cloud import CLOUD, start_shared
from tests.conftest import REPOSITORY
from tests.shared_run import SharedRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SERVICES = {
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
    "AnyScaleFrontendService": "application-autoscaling",
    "GraniteServiceVersion20100801": "cloudwatch",
    "ResourceGroupsTaggingAPI_20170126": "resourcegroupstaggingapi",
}
KINDS = ("missing", "extra", "null", "type", "case", "order", "enumeration", "late")


@dataclass(frozen=True)
class Heard:
    """One answer that passed the proxy."""

    operation: str
    request: bytes
    body: bytes

    @property
    def answer(self) -> Any:
        """As JSON."""
        return json.loads(self.body or b"{}")


@dataclass
class Walk:
    """A `live-check` that has ended."""

    returncode: int
    said: str
    report: dict[str, Any]
    heard: list[Heard] = field(default_factory=list)


def operation_name(target: str) -> str:
    """The operation as a report names it, of a call of a JSON service; empty for others."""
    service, _, operation = target.partition(".")
    return f"{SERVICES[service]}.{operation}" if service in SERVICES else ""


def check_live(
    folder: Path, environment: Mapping[str, str], change: Callable[[str, bytes, bytes], bytes], seed: int = 0
) -> Walk:
    """Run the command through a proxy that may change the answers of JSON services."""
    heard: list[Heard] = []

    def changed(target: str, request: bytes, body: bytes) -> bytes:
        name = operation_name(target)
        if not name:
            return body
        heard.append(Heard(name, request, body))
        return change(name, request, body)

    with bad_day(environment["AWS_ENDPOINT_URL"], Fault(".*", rewrite=changed)) as day:
        words = ["live-check", "--cloud", CLOUD, "--config", REPOSITORY / "conf" / "quick.yaml", "--budget-usd", "5"]
        words += ["--output_dir", folder, "--trainer.max_epochs", "1", "--seed", seed]
        done = subprocess.run(
            [sys.executable, "-m", "sagemaker_launch", *map(str, words)],
            env={**os.environ, **environment, "AWS_ENDPOINT_URL": day.address},
            capture_output=True,
            text=True,
            check=False,
        )
    report = folder / "live-check" / "report.json"
    return Walk(done.returncode, done.stdout + done.stderr, json.loads(report.read_text()), heard)


@pytest.fixture(scope="module")
def own_service(shared_run: SharedRun, job_images: Path) -> Mapping[str, str]:
    """A rehearsal without the jobs of other tests, which `sync` and `status` would find."""
    return start_shared(shared_run, job_images, "live-check-service")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, own_service: Mapping[str, str]) -> Walk:
    return check_live(tmp_path_factory.mktemp("straight"), own_service, lambda _name, _request, body: body)


def test_a_rehearsal_answers_as_the_committed_shapes_say(walk: Walk) -> None:
    assert walk.returncode == 0, walk.said
    assert walk.report["differences"] == []
    assert walk.report["unknown_operations"] == []
    assert set(walk.report["stages"].values()) == {"passed"}
    assert len(walk.heard) > 100
    assert not REVEALING.search(json.dumps(walk.report))


def replay(folder: Path, heard: list[Heard]) -> Shapes:
    """What is recorded of answers."""
    folder.mkdir()
    recording = Recording(folder)
    for one in heard:
        model = operation_model(one.operation)
        recording._note_request(SimpleNamespace(url="", body=one.request))
        recording._note_answer(model, {"status_code": 200, "body": one.body})
    return read_shapes(folder)


@dataclass(frozen=True)
class Place:
    """A place in the answers of an operation where a difference of a kind can be planted."""

    path: tuple[str, ...]
    """Names of members, and `[]` for all entries of a list."""

    @property
    def text(self) -> str:
        return "".join(step if step == "[]" else f".{step}" for step in self.path)


def places(shapes: Mapping[str, Shape], model: Any, kind: str) -> list[Place]:
    """Where a difference of a kind would be one."""
    everywhere = Shape()
    for shape in shapes.values():
        everywhere.add(shape)
    return list(_places(everywhere, model, kind, ()))


def _places(shape: Shape, model: Any, kind: str, path: tuple[str, ...]) -> Iterator[Place]:
    if "object" in shape.kinds:
        if kind in ("extra", "order") and (kind == "extra" or len(shape.always) > 1):
            yield Place(path)
        for name, member in shape.members.items():
            inner = (getattr(model, "members", None) or {}).get(name)
            always = name in shape.always
            is_null_already = kind == "null" and "null" in member.kinds
            if kind in ("missing", "null", "type", "case") and always and not is_null_already:
                yield Place((*path, name))
            if kind == "enumeration" and getattr(inner, "enum", None):
                yield Place((*path, name))
            # Entries of a list have no earlier ones of their own.
            if kind == "late" and always and not (member.late or "[]" in path or name.endswith("Status")):
                yield Place((*path, name))
            yield from _places(member, inner, kind, (*path, name))
    elif "list" in shape.kinds and shape.entry is not None:
        if kind == "order" and shape.orders:
            yield Place(path)
        yield from _places(shape.entry, getattr(model, "member", None), kind, (*path, "[]"))


def plant(answer: Any, path: tuple[str, ...], kind: str) -> Any:
    """An answer with a difference."""
    if not path:
        if kind == "extra":
            return {**answer, "NewField": "new"}
        if isinstance(answer, list):
            return answer[::-1]
        return dict(reversed(answer.items()))
    step, rest = path[0], path[1:]
    if step == "[]":
        return [plant(entry, rest, kind) for entry in answer]
    if not isinstance(answer, dict) or step not in answer:
        return answer
    if rest or kind in ("extra", "order"):
        return {**answer, step: plant(answer[step], rest, kind)}
    if kind == "late" and isinstance(answer[step], list):
        return {**answer, step: []}
    if kind in ("missing", "late"):
        return {name: value for name, value in answer.items() if name != step}
    if kind == "case":
        return {(name[0].swapcase() + name[1:] if name == step else name): value for name, value in answer.items()}
    other = 7 if isinstance(answer[step], str) else "x"
    new: dict[str, Any] = {"null": None, "enumeration": f"{answer[step]}Renamed", "type": other}
    return {**answer, step: new[kind]}


def at(answer: Any, path: tuple[str, ...]) -> Any:
    """What is at a place, outside of lists."""
    for step in path:
        answer = answer.get(step) if isinstance(answer, dict) else None
    return answer


def planted(heard: list[Heard], place: Place, kind: str) -> list[Heard]:
    """The answers of an operation with a difference; what is late is planted in the first of equal requests."""
    first: set[bytes] = set()
    found = []
    keys = [(one.request, str(at(one.answer, place.path))) for one in heard]
    asked = Counter(keys)
    for one, key in zip(heard, keys, strict=True):
        # What a later answer does not have either is gone, and not late.
        late = kind == "late" and (one.request in first or asked[key] == 1)
        if late:
            found.append(one)
            continue
        first.add(one.request)
        found.append(Heard(one.operation, one.request, json.dumps(plant(one.answer, place.path, kind)).encode()))
    return found


def test_each_planted_difference_is_found_and_no_other(walk: Walk, tmp_path: Path) -> None:
    expected = replay(tmp_path / "expected", walk.heard)
    assert differences(expected, expected) == []
    chance = random.Random(0)
    counts: Counter[str] = Counter()
    missed: list[Any] = []
    false: list[Any] = []
    by_operation: dict[str, list[Heard]] = defaultdict(list)
    for one in walk.heard:
        by_operation[one.operation].append(one)
    for number, (operation, heard) in enumerate(sorted(by_operation.items())):
        model = operation_model(operation).output_shape
        for kind in KINDS:
            repeats = len({one.request for one in heard}) < len(heard)
            known = places(expected[operation], model, kind) if kind != "late" or repeats else []
            for trial, place in enumerate(chance.sample(known, min(3, len(known)))):
                given = planted(heard, place, kind)
                if [one.answer for one in given] == [one.answer for one in heard]:
                    continue  # the first of equal requests did not have it, or it is an empty list
                changed = replay(tmp_path / f"{number}-{kind}-{trial}", given)
                found = differences({operation: expected[operation]}, changed)
                counts[kind] += 1
                if not any(is_it(one, place, kind) and one.kind == kind for one in found):
                    missed.append((operation, kind, place.text, found))
                false += [(operation, kind, place.text, one) for one in found if not is_it(one, place, kind)]
    print(dict(counts))
    assert missed == []
    assert false == []
    assert all(counts[kind] >= len(by_operation) // 2 for kind in ("missing", "extra", "null", "type", "case"))
    assert counts["order"] >= 5 and counts["enumeration"] >= 5 and counts["late"] >= 3


def is_it(found: Difference, place: Place, kind: str) -> bool:
    """Whether a difference is the planted one."""
    path = f"{place.text}.NewField" if kind == "extra" else place.text
    # What is late was missing at first.
    return found.path == path and (found.kind == kind or (kind, found.kind) == ("late", "missing"))


def test_planted_differences_are_reported_by_the_command_and_change_nothing_else(
    tmp_path: Path, own_service: Mapping[str, str]
) -> None:
    def change(name: str, _request: bytes, body: bytes) -> bytes:
        answer = json.loads(body or b"{}")
        return json.dumps(plant(dict(reversed(answer.items())), (), "extra")).encode()

    walk = check_live(tmp_path / "planted", own_service, change, seed=1)
    assert walk.returncode == 0, walk.said
    found = walk.report["differences"]
    asked = {one.operation for one in walk.heard}
    assert {re.split(r"[.:] ?", line, maxsplit=2)[0] for line in found} <= set(SERVICES.values())
    for operation in asked:
        assert f"{operation}.NewField: extra: is new" in found
    members = {
        operation for operation, states in read_expected().items() if any(len(s.members) > 1 for s in states.values())
    }
    assert {line.split(":")[0] for line in found if ": order: " in line} == members & asked
    assert len(found) == len(asked) + len(members & asked)
