"""SageMaker Debugger's library, smdebug: the only file that imports it, and not before it is needed.

smdebug 1.0.34, the last release, wants protobuf 3 and numpy below 2.3. A job has newer ones; `load_smdebug` makes it
work beside them. A job records with it; a process in an environment of its own reads:

    python -m sagemaker_launch.container.smdebug.recorder read FOLDER
    python -m sagemaker_launch.container.smdebug.recorder rules FOLDER RULES.json
"""

from __future__ import annotations

import argparse
import ast
import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sagemaker_launch.container.smdebug.rules import BuiltIn, make_rule, matches

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE = "input/config/debughookconfig.json"
"""Where the service says what to save."""
TENSORS = "/opt/ml/output/tensors"
"""Where the service collects tensors, unless it says otherwise."""
END_OF_JOB = "training_job_end.ts"
"""Tells readers that nothing more will come."""
UNUSED = (
    *("boto3", "boto3.s3", "boto3.s3.transfer", "botocore", "botocore.exceptions", "requests"),
    *("distutils", "distutils.util", "pyinstrument", "pyinstrument.renderers"),
)
"""What smdebug imports for S3, its profiler and its telemetry, and is not there everywhere."""
STATISTICS = ("mean", "abs_mean", "std", "min", "max", "l2_norm")
"""What is read of a tensor that was saved whole."""
KINDS = ("losses", "gradients", "weights", "biases")
"""Collections by which tensors are told apart."""
Mode = Literal["TRAIN", "EVAL"]
Placed = tuple[dict[int, Any], int, Any]
"""A hook, with the table of torch's that it is in and its key there."""


class DebuggerError(RuntimeError):
    """smdebug did not do what it was asked to."""


@functools.cache
def load_smdebug() -> None:
    """Make `import smdebug` work in this process.

    Raises:
        DebuggerError: if it is not there.
    """
    # It writes remarks to standard output, and where a job goes on after an interruption is our checkpoints' business.
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
    with _stand_ins(UNUSED):
        import google.protobuf

        importlib.import_module("smdebug")
        sys.modules["smdebug.profiler"] = profiler
        sys.modules["smdebug.profiler.system_metrics_reader"] = _StandIn("smdebug.profiler.system_metrics_reader")
        if int(google.protobuf.__version__.split(".")[0]) > 3:
            _rebuild_messages(root)
        if not hasattr(np.ndarray, "tostring"):
            _bring_back_tostring()
        # Who reads needs no torch.
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
    """Let these imports succeed where they would fail; afterwards nobody else meets the stand-ins."""
    absent = [name for name in names if importlib.util.find_spec(name.partition(".")[0]) is None]
    before = {name: sys.modules[name] for name in absent if name in sys.modules}
    sys.modules.update({name: _StandIn(name) for name in absent})
    yield
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


def _bring_back_tostring() -> None:
    """Give smdebug arrays that still have `tostring`, which numpy 2.3 took away."""
    util: Any = importlib.import_module("smdebug.core.tfevent.util")
    make_tensor_proto = util.make_tensor_proto

    class OldArray(np.ndarray[Any, Any]):
        tostring = np.ndarray.tobytes

    util.make_tensor_proto = lambda nparray_data, tag: make_tensor_proto(nparray_data.view(OldArray), tag)


class TensorRecorder:
    """smdebug's hook in a training: what it saves is in `folder`.

    smdebug raises errors in the middle of a training, or logs them and turns itself off, by the look of its
    configuration. Here the training always goes on, and `check` tells.
    """

    def __init__(self, config_file: Path) -> None:
        load_smdebug()
        from smdebug.core.modes import ModeKeys
        from smdebug.core.utils import error_handling_agent
        from smdebug.pytorch import Hook

        self._config_file = config_file
        self.folder = Path(json.loads(config_file.read_text()).get("LocalPath") or TENSORS)
        _clear_leftovers(self.folder)
        self._modes, self._agent = ModeKeys, error_handling_agent
        self._agent.disable_smdebug = False
        self._error: BaseException | None = None
        with _refused(config_file):
            self._hook = Hook.create_from_json_file(str(config_file))
        self._hook.has_default_configuration = self._note_error
        self._hook._make_numpy_array = _numpy_maker(self._hook._make_numpy_array)
        self._always: list[Placed] = []
        self._sometimes: list[Placed] = []
        self._is_on = False
        self._first_step = self._hook.step
        self.check()

    def watch(self, network: nn.Module, losses: Sequence[nn.Module]) -> None:
        """Put hooks on a network and on the modules of its losses.

        Those of the layers take milliseconds a step, so they are there only in steps that save more than losses.
        """
        parts = [network, *losses]
        first = network.register_forward_pre_hook(self._before_step)  # ahead of smdebug's, which begins a step
        known = {key for table in _hook_tables(parts) for key in table} - {first.id}
        self._hook.register_module(network)
        for loss in losses:
            self._hook.register_loss(loss)
        with _refused(self._config_file):  # smdebug itself would find out in the first step
            self._hook._prepare_collections()
        self.check()
        self._costly = [one for one in self._hook._get_all_collections_to_save() if one.name != "losses"]
        log_params = self._hook._log_params
        self._hook._log_params = lambda module: log_params(module) if self._is_on else None
        guard = self._agent.catch_smdebug_errors()  # which smdebug has around all of its hooks but those of gradients
        each_step = {id(network._forward_pre_hooks), *(id(loss._forward_hooks) for loss in losses)}
        for table in _hook_tables(parts):
            placed = [(table, key, guard(hook)) for key, hook in table.items() if key not in known]
            (self._always if id(table) in each_step else self._sometimes).extend(placed)
        self._switch_off()

    def set_mode(self, mode: Mode) -> None:
        """Say what the next steps are."""
        self._hook.set_mode(self._modes[mode])

    @property
    def steps(self) -> dict[str, int]:
        """The last step of each mode, from 0; GLOBAL counts them all."""
        return {mode.name: step for mode, step in self._hook.mode_steps.items()}

    def go_on(self, steps: Mapping[str, int]) -> None:
        """Count on from the steps of an earlier process."""
        self._hook.mode_steps = {self._modes[mode]: step for mode, step in steps.items()}
        self._hook.step = self._first_step = steps["GLOBAL"]

    def close(self) -> None:
        """Take the hooks away, write what is left, and note the end of the job."""
        if self._is_on:
            self._switch_off()
        for table, key, _ in self._always:
            del table[key]
        self._always, self._sometimes = [], []
        atexit.unregister(self._hook._cleanup)
        try:
            self._hook.close()
        except Exception as error:
            self._error = self._error or error
        self.folder.mkdir(parents=True, exist_ok=True)
        # smdebug leaves this to somebody else where TRAINING_JOB_NAME is set; its readers wait for it.
        (self.folder / END_OF_JOB).touch()

    def check(self) -> None:
        """Make sure that all has been saved.

        Raises:
            DebuggerError: if smdebug turned itself off, or wrote nothing.
        """
        if self._agent.disable_smdebug or self._error:
            why = f"{type(self._error).__name__}: {self._error}" if self._error else "see the traceback in the log"
            raise DebuggerError(
                f"smdebug turned itself off at step {self._hook.step} ({why}); what it saved before is in {self.folder}"
            ) from self._error
        seen = self._hook.step - self._first_step
        written = (int(path.parent.name) for path in (self.folder / "events").rglob("*.tfevents"))
        if seen and not any(step > self._first_step for step in written):
            raise DebuggerError(
                f"smdebug saw {seen} steps and wrote no event files into {self.folder}: the collections and save "
                f"intervals of {CONFIG_FILE} must make it save something"
            )

    def _before_step(self, module: nn.Module, inputs: object) -> None:
        """Have the layers' hooks there in a step that needs them; those of the step before have seen its gradients."""
        mode = self._hook.mode
        step = self._hook.mode_steps[mode] + 1
        due = any(one.save_config.should_save_step(mode, step) for one in self._costly)
        if due and not self._is_on:
            for table, key, hook in self._sometimes:
                table[key] = hook
            self._is_on = True
        elif self._is_on and not due:
            self._switch_off()

    def _switch_off(self) -> None:
        for table, key, _ in self._sometimes:
            del table[key]
        self._is_on = False

    def _note_error(self) -> bool:
        """Called by smdebug's error handling, which goes on without smdebug if this is true."""
        self._error = sys.exc_info()[1]
        return True


@contextlib.contextmanager
def _refused(config_file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its own errors have no common class
        raise DebuggerError(f"smdebug refuses {config_file}: {error}") from error


def _clear_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left: smdebug would append to the one and obey the other."""
    for leftover in [*folder.rglob("*.tmp"), folder / "claim.smd", folder / END_OF_JOB]:
        leftover.unlink(missing_ok=True)


def _hook_tables(parts: Sequence[nn.Module]) -> Iterator[dict[int, Any]]:
    """Where torch keeps the hooks of modules and their parameters."""
    for module in (module for part in parts for module in part.modules()):
        yield module._forward_pre_hooks
        yield module._forward_hooks
    for parameter in (parameter for part in parts for parameter in part.parameters()):
        yield parameter._backward_hooks or {}


def _numpy_maker(make_array: Any) -> Any:
    """The way of smdebug from a tensor to an array, also for bfloat16, which numpy does not know."""
    import torch

    def make(value: Any) -> Any:
        return make_array(value.float() if getattr(value, "dtype", None) is torch.bfloat16 else value)

    return make


def open_trial(folder: Path) -> Any:
    """What smdebug saved in a folder, as its own `create_trial` reads it; nothing waits for more to come.

    Raises:
        DebuggerError: if the folder holds nothing of it.
    """
    load_smdebug()
    from smdebug.trials import create_trial

    if not any((folder / "collections").rglob("*_collections.json")):
        raise DebuggerError(f"{folder} must hold tensors that smdebug saved, it has no collections")
    trial = create_trial(str(folder))
    trial.loaded_all_steps = True
    return trial


class SavedStep:
    """One global step of a trial."""

    def __init__(self, trial: Any, number: int, collections: Mapping[str, Collection[str]]) -> None:
        self.number = number
        self.collections = collections
        self.mode = str(trial.mode(number).name)
        self.mode_step = int(trial.mode_step(number))
        self.modes = {mode.name for mode in trial.modes()} or {"GLOBAL"}
        self.tensors = sorted(trial.global_step_to_tensors_map[number])
        self._trial = trial
        self._known: dict[str, dict[str, float]] = {}

    def collection(self, name: str) -> list[str]:
        """Tensors of a collection."""
        members = self.collections.get(name, ())
        return [tensor for tensor in self.tensors if tensor in members]

    def matching(self, patterns: list[str]) -> list[str]:
        """Tensors whose names match one of some patterns."""
        return [tensor for tensor in self.tensors if matches(tensor, patterns)]

    def statistic(self, tensor: str, name: str) -> float | None:
        """One number of a tensor, or None where it was not saved."""
        if tensor not in self._known:
            self._known[tensor] = self._statistics(tensor)
        return self._known[tensor].get(name)

    def percentiles(self, tensor: str, low: float, high: float) -> tuple[float, float] | None:
        """Two percentiles of a tensor's values; where only reductions were saved, the smallest and the largest."""
        values = self._values(tensor)
        if values is not None:
            return float(np.percentile(values, low)), float(np.percentile(values, high))
        smallest, largest = self.statistic(tensor, "min"), self.statistic(tensor, "max")
        return None if smallest is None or largest is None else (smallest, largest)

    def _values(self, tensor: str) -> np.ndarray[Any, Any] | None:
        from smdebug.exceptions import TensorUnavailableForStep

        try:
            return np.asarray(self._trial.tensor(tensor).value(self.number))
        except TensorUnavailableForStep:
            return None

    def _statistics(self, tensor: str) -> dict[str, float]:
        """What was saved; of a whole tensor what smdebug would have saved, whose own code fails on four dimensions."""
        values = self._values(tensor)
        if values is not None:
            return statistics(values)
        saved = self._trial.tensor(tensor).reduction_values(self.number)
        return {
            f"{'abs_' if absolute else ''}{name}{'_norm' if name in ('l1', 'l2') else ''}": float(value)
            for (name, absolute), value in saved.items()
        }


def statistics(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """The reductions of a tensor that are of use here."""
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0  # as torch does
    return {
        "mean": float(values.mean()),
        "abs_mean": float(np.abs(values).mean()),
        "std": spread,
        "variance": spread**2,
        "min": float(values.min()),
        "max": float(values.max()),
        "l2_norm": float(np.linalg.norm(values.ravel())),
    }


def saved_steps(trial: Any) -> list[SavedStep]:
    """All steps of a trial, in their order."""
    names = trial.tensor_names()
    collections = {
        name: {one for one in names if one in members.tensor_names or matches(one, members.include_regex)}
        for name, members in trial.collections().items()
    }
    return [SavedStep(trial, number, collections) for number in trial.steps()]


def read(folder: Path) -> dict[str, Any]:
    """Losses, and statistics of gradients, weights and other tensors.

    Returns:
        `modes`: mode to number of saved steps; `losses`: tensor to mode to points of global step, step of the mode and
        value; `tensors`: tensor to its collection and its points, each with `step` (global), `mode` and statistics.

    Raises:
        DebuggerError: if there is nothing to read.
    """
    losses: dict[str, dict[str, list[tuple[int, int, float | None]]]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    modes: dict[str, int] = {}
    for step in saved_steps(open_trial(folder)):
        modes[step.mode] = modes.get(step.mode, 0) + 1
        for name in step.tensors:
            kind = next((kind for kind in KINDS if name in step.collections.get(kind, ())), "other")
            if kind == "losses":
                point = (step.number, step.mode_step, step.statistic(name, "mean"))
                losses.setdefault(name, {}).setdefault(step.mode, []).append(point)
                continue
            values = {one: value for one in STATISTICS if (value := step.statistic(name, one)) is not None}
            entry = tensors.setdefault(name, {"collection": kind, "points": []})
            entry["points"].append({"step": step.number, "mode": step.mode, **values})
    return {"modes": modes, "losses": losses, "tensors": tensors}


def evaluate(folder: Path, configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What rules find in a folder, by smdebug's own way of running them.

    Args:
        configurations: DebugRuleConfigurations of a request.

    Returns:
        For each its name, a RuleEvaluationStatus, StatusDetails and the first global step at which it was met.
    """
    try:
        trial = open_trial(folder)
    except DebuggerError as error:
        return [{"RuleConfigurationName": one["RuleConfigurationName"], **_error(error)} for one in configurations]
    steps = {step.number: step for step in saved_steps(trial)}
    statuses = []
    for configuration in configurations:
        try:
            rule = make_rule(configuration.get("RuleParameters") or {})
            status = _status(rule, _run_rule(trial, steps, rule))
        except ValueError as error:
            status = _error(error)
        statuses.append({"RuleConfigurationName": configuration["RuleConfigurationName"], **status})
    return statuses


def _run_rule(trial: Any, steps: Mapping[int, SavedStep], rule: BuiltIn) -> list[tuple[int, str]]:
    """The steps at which a rule was met, and what was wrong."""
    from smdebug.exceptions import NoMoreData
    from smdebug.rules import Rule, invoke_rule

    found: list[tuple[int, str]] = []

    class Adapter(Rule):  # type: ignore[misc]
        def invoke_at_step(self, step: int) -> bool:
            if detail := rule.at(steps[step]):
                found.append((step, detail))
                return True
            return False

    with contextlib.suppress(NoMoreData):  # by which it says that it is through
        invoke_rule(Adapter(trial, action_str=""))
    if detail := rule.end():
        found.append((max(steps), detail))
    return found


def _status(rule: BuiltIn, found: list[tuple[int, str]]) -> dict[str, Any]:
    if found:
        step, detail = found[0]
        more = f" ({len(found)} times in all)" if len(found) > 1 else ""
        return {"RuleEvaluationStatus": "IssuesFound", "StatusDetails": f"step {step}: {detail}{more}", "step": step}
    if not rule.looked_at:
        return _error(f"there is nothing to judge: it needs {rule.needs}")
    details = f"nothing found, looked {rule.looked_at} times"
    return {"RuleEvaluationStatus": "NoIssuesFound", "StatusDetails": details, "step": None}


def _error(error: object) -> dict[str, Any]:
    return {"RuleEvaluationStatus": "Error", "StatusDetails": str(error), "step": None}


def main(argv: Sequence[str]) -> int:
    """Read a folder of tensors, or run rules on it; one line of JSON on standard output."""
    parser = argparse.ArgumentParser("python -m sagemaker_launch.container.smdebug.recorder", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    for name in ("read", "rules"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.choices["rules"].add_argument("rules", type=Path, help="DebugRuleConfigurations as JSON")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "read":
            result: object = read(arguments.folder)
        else:
            result = evaluate(arguments.folder, json.loads(arguments.rules.read_text()))
    except DebuggerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
