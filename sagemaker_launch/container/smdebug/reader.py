"""Tensors that smdebug saved: their statistics, and what rules find in them.

A process in an environment of its own runs this, with smdebug's own packages:

    python -m sagemaker_launch.container.smdebug.reader read FOLDER
    python -m sagemaker_launch.container.smdebug.reader rules FOLDER RULES.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagemaker_launch.container.smdebug.compat import DebuggerError, load_smdebug
from sagemaker_launch.container.smdebug.rules import BuiltIn, make_rule, matches

STATISTICS = ("mean", "abs_mean", "std", "min", "max", "l2_norm")
"""Statistics that are computed of a tensor that was saved whole."""
COLLECTIONS = ("losses", "gradients", "weights", "biases")
"""smdebug's collections that are shown; all other tensors are `other`."""


def open_trial(folder: Path) -> Any:
    """The tensors in a folder, as smdebug's `create_trial` reads them, without waiting for further ones.

    Raises:
        DebuggerError: if the folder has no tensors.
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
        """A statistic of a tensor, or None where it was not saved."""
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
        """The saved reductions, or those of a whole tensor: smdebug's own code fails on four dimensions."""
        values = self._values(tensor)
        if values is not None:
            return statistics(values)
        saved = self._trial.tensor(tensor).reduction_values(self.number)
        return {
            f"{'abs_' if absolute else ''}{name}{'_norm' if name in ('l1', 'l2') else ''}": float(value)
            for (name, absolute), value in saved.items()
        }


def statistics(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """The reductions of a tensor that rules and the report read."""
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
        name: {tensor for tensor in names if tensor in members.tensor_names or matches(tensor, members.include_regex)}
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
            collection = next(
                (collection for collection in COLLECTIONS if name in step.collections.get(collection, ())), "other"
            )
            if collection == "losses":
                point = (step.number, step.mode_step, step.statistic(name, "mean"))
                losses.setdefault(name, {}).setdefault(step.mode, []).append(point)
                continue
            values = {
                statistic: value for statistic in STATISTICS if (value := step.statistic(name, statistic)) is not None
            }
            entry = tensors.setdefault(name, {"collection": collection, "points": []})
            entry["points"].append({"step": step.number, "mode": step.mode, **values})
    return {"modes": modes, "losses": losses, "tensors": tensors}


def evaluate(folder: Path, configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Evaluate rules on the tensors in a folder, by smdebug's own evaluation loop.

    Args:
        configurations: DebugRuleConfigurations of a request.

    Returns:
        For each rule its name, a RuleEvaluationStatus, StatusDetails and the first global step with an issue.
    """
    try:
        trial = open_trial(folder)
    except DebuggerError as error:
        return [
            {"RuleConfigurationName": configuration["RuleConfigurationName"], **_error(error)}
            for configuration in configurations
        ]
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
    """The steps with an issue, and its description."""
    from smdebug.exceptions import NoMoreData
    from smdebug.rules import Rule, invoke_rule

    found: list[tuple[int, str]] = []

    class Adapter(Rule):  # type: ignore[misc]
        def invoke_at_step(self, step: int) -> bool:
            if detail := rule.at(steps[step]):
                found.append((step, detail))
                return True
            return False

    with contextlib.suppress(NoMoreData):  # raised after the last step
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
    parser = argparse.ArgumentParser("python -m sagemaker_launch.container.smdebug.reader", description=__doc__)
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
