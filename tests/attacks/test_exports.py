"""Models of strangers: weights, manifests and archives that declare more than they hold."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import math
import re
import shutil
import struct
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_modules.inference import BadExportError, load_export, model_fn, read_safetensors
from sagemaker_launch.shipping.archive import BadArchiveError, pack_model, unpack_model
from tests.unit.lightning_modules.test_export import export, tiny_network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux does"),
]


def measured(call: Callable[[], object], error: type[Exception]) -> tuple[str, float, float]:
    """What a call raises, the memory that it takes in MB, and its processor time in seconds."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the most memory so far counts from now on
    before, started = _most(), time.process_time()
    with pytest.raises(error) as caught:
        call()
    return str(caught.value), _most() - before, time.process_time() - started


def _most() -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny_network(), tmp_path_factory.mktemp("export") / "model")


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "export"))


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def put(folder: Path, weights: bytes) -> None:
    """Other weights, with a hash that fits."""
    (folder / "model.safetensors").write_bytes(weights)
    change(folder, "model.json", {"sha256": hashlib.sha256(weights).hexdigest()})


def change(folder: Path, name: str, values: dict[str, Any]) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def overlapping(count: int, size: int) -> bytes:
    part = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    return safetensors({f"t{index}": part for index in range(count)}, bytes(size))


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


WEIGHTS = {
    "overlapping tensors": overlapping(2_000, 4_000_000),
    "a long header": safetensors(b" " * 2_000_000),
    "a header that says to be longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "a tensor beyond the end": safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "a shape larger than its bytes": safetensors(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "a shape with many sides": safetensors(
        {"a": {"dtype": "U8", "shape": [1] * 100_000, "data_offsets": [0, 1]}}, b"a"
    ),
    "huge numbers": safetensors({"a": {"dtype": "U8", "shape": [10**300], "data_offsets": [0, 10**300]}}),
    "negative places": safetensors({"a": {"dtype": "U8", "shape": [1], "data_offsets": [-2, -1]}}, b"a"),
    "fractions": safetensors({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0.0, 1.0]}}, b"a"),
    "truth values": safetensors({"a": {"dtype": "U8", "shape": [True], "data_offsets": [False, True]}}, b"a"),
    "texts": safetensors({"a": {"dtype": "U8", "shape": "1", "data_offsets": "01"}}, b"a"),
    "a list": safetensors([1]),
    "deep nesting": safetensors(b"[" * 500_000),
    "no type": safetensors({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"a"),
    "an unknown type": safetensors({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "more bytes than tensors": safetensors({}, bytes(10)),
    "tensors of another network": safetensors({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"a"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_cost_no_more_memory_than_the_file_has(folder: Path, name: str) -> None:
    put(folder, WEIGHTS[name])
    said, megabytes, seconds = measured(lambda: model_fn(str(folder)), BadExportError)
    assert "\n" not in said and len(said) < 1_000
    assert megabytes < 100 and seconds < 3


NUMBERS: tuple[Any, ...] = (0, -1, 1.5, True, None, "8", [], {}, 1e308, math.nan, math.inf, 10**400, 10**9, "9" * 5_000)
NAMES: tuple[Any, ...] = (None, [], {}, "abc", 3, [1, 2], [None], [["a"]])
EMPTY: tuple[Any, ...] = (None, 1, [], {}, "")
KINDS: tuple[Any, ...] = (None, 1, [], {"a": 1}, "\0", "a\nb")
LOGITS: tuple[Any, ...] = (*NUMBERS, ["a"], [None], [True], [[1, 2]], [10**400], [math.nan] * 3, [0] * 9)
MANIFESTS: dict[str, dict[str, Any]] = {
    **{f"class_names {value!r:.20}": {"class_names": value} for value in NAMES},
    "a million classes": {"class_names": [str(index) for index in range(1_000_000)], "backbone": "vgg11"},
    "another network": {"backbone": "regnet_y_128gf"},
    "a network of another kind": {"backbone": "fcn_resnet50"},
    "a path": {"backbone": "../../../etc/passwd"},
    "a long name": {"backbone": "a" * 1_000_000},
    **{f"backbone {value!r:.20}": {"backbone": value} for value in KINDS},
    **{f"sha256 {value!r:.20}": {"sha256": value} for value in (*KINDS, "../x")},
    **{f"preprocessing {value!r:.20}": {"preprocessing": value} for value in EMPTY},
}
PREPROCESSING: dict[str, tuple[Any, ...]] = {
    "image_size": NUMBERS,
    "resize_size": NUMBERS,
    "mean": (*NUMBERS, [0, 0], [0, 0, math.nan], [0, 0, "a"], [[0], [0], [0]], [0] * 100_000),
    "std": (*NUMBERS, [1, 1, 0], [1, 1, -1], [1, 1, math.inf], [None] * 3),
    "interpolation": (0, None, [], "nearest", "a\nb", {}),
}


def hostile_manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from MANIFESTS.items()
    good = {"image_size": 32, "resize_size": 36, "mean": [0.5] * 3, "std": [0.5] * 3}
    for name, values in PREPROCESSING.items():
        for value in values:
            yield f"{name} {value!r:.20}", {"preprocessing": good | {name: value}}


def test_any_value_in_a_manifest_ends_in_one_sentence(folder: Path) -> None:
    kept = (folder / "model.json").read_text()
    for name, values in hostile_manifests():
        (folder / "model.json").write_text(kept)
        change(folder, "model.json", values)
        with pytest.raises(BadExportError) as caught:
            load_export(folder)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_000, name
    for text in (b"", b"[]", b"null", b"{", b"\xff", b'{"a":' * 100_000, b"9" * 10_000, b" " * 20_000_000):
        (folder / "model.json").write_bytes(text)
        with pytest.raises(BadExportError) as caught:
            load_export(folder)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_000


@pytest.mark.parametrize("name", ["a million classes", "another network"])
def test_a_network_larger_than_its_weights_is_not_allocated(folder: Path, name: str) -> None:
    change(folder, "model.json", MANIFESTS[name])
    _, megabytes, seconds = measured(lambda: model_fn(str(folder)), BadExportError)
    assert megabytes < 500 and seconds < 10


@pytest.mark.parametrize(
    "values",
    [
        *(
            {"logits": value}
            for value in (*NUMBERS, ["a"], [None], [True], [[1, 2]], [10**400], [math.nan] * 3, [0] * 9)
        ),
        *({"class_name": value} for value in (*KINDS, "x" * 1_000_000)),
    ],
    ids=lambda value: f"{value!r:.30}",
)
def test_any_value_in_the_golden_scores_ends_in_one_sentence(folder: Path, values: dict[str, Any]) -> None:
    change(folder, "golden/scores.json", values)
    with pytest.raises(BadExportError) as caught:
        model_fn(str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
KEYS = ("class_names", "backbone", "sha256", "preprocessing")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KEYS), JSON)
def test_any_json_in_a_manifest_ends_in_one_sentence(folder: Path, key: str, value: object) -> None:
    kept = (folder / "model.json").read_text()
    change(folder, "model.json", {key: value})
    with pytest.raises(BadExportError) as caught:
        load_export(folder)
    assert "\n" not in str(caught.value)
    (folder / "model.json").write_text(kept)


PART = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "I64", "F8"]),
        "shape": st.lists(st.integers(-2, 2**40), max_size=3),
        "data_offsets": st.lists(st.integers(-5, 2**40), min_size=2, max_size=2),
    }
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=3), PART | JSON, min_size=1, max_size=4), st.binary(max_size=40))
def test_any_header_of_weights_is_read_or_refused(tmp_path: Path, header: dict[str, object], data: bytes) -> None:
    path = tmp_path / "weights"
    path.write_bytes(safetensors(header, data))
    try:
        tensors = read_safetensors(path)
    except BadExportError:
        return
    assert sum(one.numel() * one.element_size() for one in tensors.values()) == len(data)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def sparse(size: int) -> bytes:
    block = bytearray(header("model.json", 512, tarfile.GNUTYPE_SPARSE))
    block[483:495] = b"\x80" + size.to_bytes(11)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512)


def zipped(*parts: bytes | int) -> Iterator[bytes]:
    """The parts, of which a number is as many zero bytes, packed without having them in memory."""
    packer = zlib.compressobj(9, wbits=31)
    for part in parts:
        if isinstance(part, bytes):
            yield packer.compress(part)
            continue
        for _ in range(part >> 20):
            yield packer.compress(bytes(1 << 20))
    yield packer.flush()


GB2 = 2 << 30
CHAINED = header("x", 512, tarfile.XHDTYPE) + b"11 a=bcdef\n".ljust(512, b"\0")
ARCHIVES: dict[str, Callable[[], Iterator[bytes]]] = {
    "a long name of 2 GB": lambda: zipped(header("x", GB2, tarfile.GNUTYPE_LONGNAME), GB2),
    "a long link of 2 GB": lambda: zipped(header("x", GB2, tarfile.GNUTYPE_LONGLINK), GB2),
    "an extended header of 2 GB": lambda: zipped(header("x", GB2, tarfile.XHDTYPE), GB2),
    "a global header of 2 GB": lambda: zipped(header("x", GB2, tarfile.XGLTYPE), GB2),
    "an extended header after a file": lambda: zipped(header("model.json", 0), header("x", GB2, tarfile.XHDTYPE), GB2),
    "a chain of headers": lambda: zipped(
        *([header("x", 512, tarfile.XHDTYPE) + b"11 a=bcdef\n".ljust(512, b"\0")] * 9_000)
    ),
    "millions of folders": lambda: zipped(*([header("golden", 0, tarfile.DIRTYPE) * 2_000] * 500)),
    "a manifest of 2 GB": lambda: zipped(header("model.json", GB2), GB2),
    "weights of 9 GB that are not there": lambda: zipped(header("model.safetensors", 9 << 30)),
    "a sparse manifest": lambda: zipped(sparse(GB2)),
    "2 GB behind the end": lambda: zipped(header("golden", 0, tarfile.DIRTYPE), 1 << 20, GB2),
    "negative size": lambda: zipped(header("model.json", -1), 1 << 20),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_costs_no_memory_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.tar.gz"
    with path.open("wb") as file:
        for part in ARCHIVES[name]():
            file.write(part)
    assert path.stat().st_size < 10_000_000
    said, megabytes, seconds = measured(lambda: unpack_model(path, tmp_path / "unpacked"), BadArchiveError)
    assert "\n" not in said
    assert megabytes < 100 and seconds < 3
    assert [one.name for one in tmp_path.iterdir()] == ["model.tar.gz"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_of_an_archive_unpack_to_a_whole_export_or_to_nothing(
    exported: Path, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    packed = pack_model(exported, tmp_path / "good.tar.gz")
    content = bytearray(gzip.decompress(packed.read_bytes()))
    for place, value in changes:
        content[place] = value
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(gzip.compress(bytes(content), 1))
    target = tmp_path / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    try:
        unpack_model(path, target)
    except BadArchiveError:
        assert not target.exists()


def test_ordinary_archives_of_other_programs_are_unpacked(exported: Path, tmp_path: Path) -> None:
    for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar.gz"
        with tarfile.open(path, "w:gz", format=kind, pax_headers={"comment": "a" * 10_000}) as archive:
            archive.add(exported, arcname=".")
        assert (unpack_model(path, tmp_path / str(number)) / "model.json").is_file()
