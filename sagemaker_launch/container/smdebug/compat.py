"""`import smdebug` beside today's packages.

smdebug 1.0.34, the last release, wants protobuf 3 and numpy below 2.3. A job has newer ones; `load_smdebug` makes it
work beside them. Only this package imports smdebug, and not before it is needed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

UNUSED = (
    *("boto3", "boto3.s3", "boto3.s3.transfer", "botocore", "botocore.exceptions", "requests"),
    *("distutils", "distutils.util", "pyinstrument", "pyinstrument.renderers"),
)
"""Modules that smdebug imports for S3, its profiler and its telemetry, and that may be missing."""


class DebuggerError(RuntimeError):
    """smdebug did not save what was requested."""


@functools.cache
def load_smdebug() -> None:
    """Make `import smdebug` work in this process.

    Raises:
        DebuggerError: if smdebug is not installed.
    """
    # It prints to standard output, and resuming after an interruption is the task of our checkpoints.
    os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")
    os.environ["SMDEBUG_LOG_ALL_TO_STDOUT"] = "false"
    os.environ["SMDEBUG_TRAINING_END_DELAY_REFRESH"] = "0"
    os.environ["CHECKPOINT_CONFIG_FILE_PATH"] = os.environ["SMPROFILER_CONFIG_PATH"] = ""
    found = importlib.util.find_spec("smdebug")
    if found is None or found.origin is None:
        raise DebuggerError("smdebug must come with the code of a job that is debugged: start it with --debug")
    root = Path(found.origin).parent
    # `import smdebug.profiler` would import pandas, for what the profiler has measured.
    profiler = types.ModuleType("smdebug.profiler")
    profiler.__path__ = [str(root / "profiler")]
    with _stand_ins(UNUSED), warnings.catch_warnings():
        # Python 3.12 warns of backslashes in smdebug's strings.
        warnings.simplefilter("ignore", SyntaxWarning)
        import google.protobuf

        importlib.import_module("smdebug")
        sys.modules["smdebug.profiler"] = profiler
        sys.modules["smdebug.profiler.system_metrics_reader"] = _StandIn("smdebug.profiler.system_metrics_reader")
        if int(google.protobuf.__version__.split(".")[0]) > 3:
            _rebuild_messages(root)
        _restore_tostring()
        # A process that only reads tensors needs no torch.
        recording = ["smdebug.pytorch"] if importlib.util.find_spec("torch") else []
        for name in ("smdebug.trials", "smdebug.rules", *recording):
            importlib.import_module(name)


class _StandIn(types.ModuleType):
    """A module from which any name can be imported."""

    __path__ = []  # noqa: RUF012

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


@contextlib.contextmanager
def _stand_ins(names: Collection[str]) -> Iterator[None]:
    """Replace missing modules by empty ones while smdebug is imported."""
    absent = [name for name in names if importlib.util.find_spec(name.partition(".")[0]) is None]
    before = {name: sys.modules[name] for name in absent if name in sys.modules}
    sys.modules.update({name: _StandIn(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
        sys.modules.update(before)


def _rebuild_messages(root: Path) -> None:
    """Make smdebug's message classes from the descriptors in its generated files, which protobuf 4 and later refuse."""
    from google.protobuf import descriptor_pb2, descriptor_pool
    from google.protobuf.internal import builder

    package = importlib.import_module("smdebug.core.tfevent.proto")
    pool = descriptor_pool.Default()
    files = {
        f"smdebug/core/tfevent/proto/{path.name.replace('_pb2.py', '.proto')}": path
        for path in (root / "core" / "tfevent" / "proto").glob("*_pb2.py")
    }

    def build(name: str) -> None:
        serialized = _serialized_descriptor(files[name])
        for dependency in descriptor_pb2.FileDescriptorProto.FromString(serialized).dependency:
            if dependency in files:
                build(dependency)
        path = files.pop(name)
        module = types.ModuleType(f"{package.__name__}.{path.stem}")
        descriptor = pool.AddSerializedFile(serialized)
        module.__dict__["DESCRIPTOR"] = descriptor
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, module.__name__, module.__dict__)
        sys.modules[module.__name__] = module
        setattr(package, path.stem, module)

    while files:
        build(next(iter(files)))


def _serialized_descriptor(path: Path) -> bytes:
    keywords = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.keyword))
    found = next(keyword.value for keyword in keywords if keyword.arg == "serialized_pb")
    assert isinstance(found, ast.Constant) and isinstance(found.value, bytes)
    return found.value


def _restore_tostring() -> None:
    """Make smdebug create arrays with `tostring`, which numpy 2.3 removed."""
    import numpy as np

    if hasattr(np.ndarray, "tostring"):
        return
    util: Any = importlib.import_module("smdebug.core.tfevent.util")
    make_tensor_proto = util.make_tensor_proto

    class OldArray(np.ndarray[Any, Any]):
        tostring = np.ndarray.tobytes

    util.make_tensor_proto = lambda nparray_data, tag: make_tensor_proto(nparray_data.view(OldArray), tag)
