"""AWS's documented rules of SageMaker Debugger, as far as a classifier needs them, and ExplodingTensor.

AWS does not publish the code of its own rules. Names, parameters and defaults are those of "List of Debugger built-in
rules" in a stored copy of the developer guide (github.com/awsdocs/amazon-sagemaker-developer-guide, read 2026-11-25).
Where the guide counts steps of losses, ours look at means: a job saves the loss of each batch, and batches differ by
their photos. A validation counts as one step of EVAL, and a training loss is the mean since the validation before.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

from experiments.errors import UserError

FINITE_STATISTICS = ("mean", "abs_mean", "min", "max", "l2_norm")
"""Reductions that must be finite; not the spread, which a single value does not have."""
MODES = ("EVAL", "TRAIN", "GLOBAL")
OF_THE_SERVICE = ("rule_to_invoke", "base_trial", "source_s3_uri")
"""Entries of RuleParameters that are not parameters of the rule."""


class Step(Protocol):
    """The tensors of one global step."""

    @property
    def number(self) -> int:
        """The global step."""

    @property
    def mode(self) -> str:
        """TRAIN, EVAL or GLOBAL."""

    @property
    def modes(self) -> Collection[str]:
        """All modes of the training."""

    def collection(self, name: str) -> list[str]:
        """Tensors of a collection."""

    def matching(self, patterns: list[str]) -> list[str]:
        """Tensors whose names match one of some patterns."""

    def statistic(self, tensor: str, name: str) -> float | None:
        """A statistic of a tensor (`abs_mean`, `l2_norm`, ...), or None where it was not saved."""

    def percentiles(self, tensor: str, low: float, high: float) -> tuple[float, float] | None:
        """Two percentiles of a tensor's values, or None where they were not saved."""


class BuiltIn(Protocol):
    """A rule, which is given all steps in order."""

    @property
    def needs(self) -> str:
        """The tensors that must be saved for this rule."""

    @property
    def looked_at(self) -> int:
        """Number of steps with tensors for this rule."""

    def at(self, step: Step) -> str | None:
        """Evaluate a step: a description of the issue, or None."""

    def end(self) -> str | None:
        """Evaluate the end of the steps: a description of the issue, or None."""


@dataclass
class VanishingGradient:
    """The mean of a gradient's absolute values falls below `threshold`.

    Biases are left out: one that a normalisation follows has no gradient in the best of networks (ShuffleNet has 14).
    """

    threshold: float = 0.0000001

    needs = "gradients, raw or with the reduction abs_mean"
    looked_at = 0

    def at(self, step: Step) -> str | None:
        """Compare each gradient."""
        names = [name for name in step.collection("gradients") if not name.endswith("bias")]
        means = _numbers(step, names, "abs_mean")
        self.looked_at += bool(means)
        small = {name: mean for name, mean in means.items() if mean < self.threshold}
        if not small:
            return None
        name = min(small, key=small.__getitem__)
        return f"{len(small)} of {len(means)} gradients are below {self.threshold:g}: {name} has {small[name]:.3g}"

    def end(self) -> None:
        """Nothing is left to evaluate."""


@dataclass
class ExplodingTensor:
    """A tensor is NaN or, unless `only_nan`, infinite."""

    collection_names: list[str] = field(default_factory=list)
    tensor_regex: list[str] = field(default_factory=list)
    only_nan: bool = False

    needs = "tensors, raw or with a reduction such as abs_mean"
    looked_at = 0

    def at(self, step: Step) -> str | None:
        """Check the tensors of the rule's collections and patterns; all by default."""
        names = step.matching(self.tensor_regex or [".*"])
        if self.collection_names:
            names = _chosen(step, self.collection_names, self.tensor_regex)
        wrong = math.isnan if self.only_nan else lambda value: not math.isfinite(value)
        for name in names:
            values = [step.statistic(name, statistic) for statistic in FINITE_STATISTICS]
            numbers = [value for value in values if value is not None]
            self.looked_at += bool(numbers)
            if any(map(wrong, numbers)):
                return f"{name} holds {next(value for value in numbers if wrong(value))}"
        return None

    def end(self) -> None:
        """Nothing is left to evaluate."""


@dataclass
class Epochs:
    """Averages losses: of each validation, and of the training since the validation before."""

    names: Callable[[Step], list[str]]
    looked_at: int = 0
    number: int = 0
    """The last step of the validation."""
    _train: list[float] = field(default_factory=list)
    _valid: list[float] = field(default_factory=list)

    def add(self, step: Step) -> tuple[float, float] | None:
        """Add the losses of a step; returns mean training and validation loss at the end of a validation."""
        loss = _loss(step, self.names(step))
        if loss is None:
            return None
        self.looked_at += 1
        if step.mode == "EVAL":
            self._valid.append(loss)
            self.number = step.number
            return None
        done = self.end()
        self._train.append(loss)
        return done

    def end(self) -> tuple[float, float] | None:
        """Loss of the last validation."""
        if not self._valid or not self._train:
            return None
        means = fmean(self._train), fmean(self._valid)
        self._train, self._valid = [], []
        return means


class OfEpochs(ABC):
    """Base class of the rules that compare validations."""

    needs = "losses of TRAIN and EVAL"
    _epochs: Epochs

    @property
    def looked_at(self) -> int:
        """Steps that had a loss."""
        return self._epochs.looked_at

    def at(self, step: Step) -> str | None:
        """Evaluate a validation at its end."""
        return self._judge(self._epochs.add(step))

    def end(self) -> str | None:
        """Evaluate the last validation."""
        return self._judge(self._epochs.end())

    @abstractmethod
    def _judge(self, means: tuple[float, float] | None) -> str | None:
        """Describe an issue of the training and the validation loss; None if no validation has ended."""


@dataclass
class Overfit(OfEpochs):
    """The validation loss is above the training loss by more than `ratio_threshold`, `patience` times in a row."""

    tensor_regex: list[str] = field(default_factory=list)
    start_step: int = 0
    patience: int = 1
    ratio_threshold: float = 0.1

    def __post_init__(self) -> None:
        self._epochs = Epochs(lambda step: _chosen(step, ["losses"], self.tensor_regex))
        self._times = 0

    def _judge(self, means: tuple[float, float] | None) -> str | None:
        if means is None or self._epochs.number < self.start_step:
            return None
        train, valid = means
        over = (valid - train) / train if train else math.inf
        self._times = self._times + 1 if over > self.ratio_threshold else 0
        if self._times < self.patience:
            return None
        return f"the validation loss {valid:.4g} is {over:.0%} above the training loss {train:.4g}"


@dataclass
class Overtraining(OfEpochs):
    """Neither loss has fallen by `delta` below its best for as many validations as their patience says."""

    patience_train: int = 5
    patience_validation: int = 10
    delta: float = 0.01

    def __post_init__(self) -> None:
        self._epochs = Epochs(lambda step: step.collection("losses"))
        self._best = [math.inf, math.inf]
        self._waited = [0, 0]

    def _judge(self, means: tuple[float, float] | None) -> str | None:
        if means is None:
            return None
        for which, mean in enumerate(means):
            improved = mean < self._best[which] - self.delta
            self._best[which] = mean if improved else self._best[which]
            self._waited[which] = 0 if improved else self._waited[which] + 1
        train, valid = self._waited
        if train < self.patience_train or valid < self.patience_validation:
            return None
        return f"the training loss has not improved for {train} validations, the validation loss for {valid}"


@dataclass
class LossNotDecreasing:
    """The loss does not fall by `diff_percent` over `num_steps`.

    In EVAL the means of validations are compared, else the means of `num_steps` losses each. The guide allows an
    increase of `increase_threshold_percent` without defining how it combines with the required decrease; here one small
    increase is ignored, and the next loss must be lower.
    """

    collection_names: list[str] = field(default_factory=list)
    tensor_regex: list[str] = field(default_factory=list)
    use_losses_collection: bool = True
    num_steps: int = 10
    diff_percent: float = 0.1
    increase_threshold_percent: float = 5.0
    mode: str = ""
    """By default the first of EVAL, TRAIN and GLOBAL that was saved."""

    needs = "losses"
    looked_at = 0

    def __post_init__(self) -> None:
        if self.mode not in ("", *MODES):
            raise UserError(f"LossNotDecreasing.mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        self._window: list[float] = []
        self._last = 0
        self._before: tuple[int, float] | None = None
        self._forgiven = False

    def at(self, step: Step) -> str | None:
        """Add a loss, and compare the means when one is complete."""
        self.mode = self.mode or next(mode for mode in MODES if mode in step.modes)
        collections = [*self.collection_names, *(["losses"] if self.use_losses_collection else [])]
        loss = _loss(step, _chosen(step, collections, self.tensor_regex))
        if loss is None:
            return None
        self.looked_at += 1
        if self.mode not in ("GLOBAL", step.mode):
            return self.end()
        self._window.append(loss)
        self._last = step.number
        return self._compare() if self.mode != "EVAL" and len(self._window) >= self.num_steps else None

    def end(self) -> str | None:
        """Compare the last validation."""
        return self._compare() if self.mode == "EVAL" and self._window else None

    def _compare(self) -> str | None:
        now, self._window = fmean(self._window), []
        at, before = self._before or (self._last, math.inf)
        if self._before is not None and self._last - at < self.num_steps:
            return None
        self._before = self._last, now
        fell = 100 * (before - now) / abs(before) if 0 < abs(before) < math.inf else math.inf
        if fell >= self.diff_percent:
            self._forgiven = False
            return None
        if fell >= -self.increase_threshold_percent and not self._forgiven:
            self._forgiven = True
            return None
        return f"the loss went from {before:.4g} at step {at} to {now:.4g}: it must fall by {self.diff_percent} %"


@dataclass
class PoorWeightInitialization:
    """Over the first `steps` steps the loss does not fall for `patience` steps, and the network shows why.

    Either the variances of its layers' activation inputs are more than `threshold` times apart, or a gradient spreads
    over less than `distribution_range`, from its 5th to its 95th percentile (where only reductions were saved: from its
    smallest to its largest value, which is at least as wide).
    """

    activation_inputs_regex: list[str] = field(default_factory=lambda: [".*relu_input"])
    threshold: float = 10.0
    distribution_range: float = 0.001
    patience: int = 5
    steps: int = 10

    needs = "losses, and gradients (raw, or min and max) or activation inputs (raw, or variance)"

    def __post_init__(self) -> None:
        self._reason = ""
        self._losses: list[float] = []
        self._causes = 0

    @property
    def looked_at(self) -> int:
        """How often both were there."""
        return min(self._causes, len(self._losses))

    def at(self, step: Step) -> str | None:
        """Evaluate one of the first steps of the training."""
        if step.mode == "EVAL" or len(self._losses) >= self.steps:
            return None
        self._reason = self._reason or self._cause(step)
        loss = _loss(step, step.collection("losses"))
        if loss is not None:
            self._losses.append(loss)
        best = min(range(len(self._losses)), key=self._losses.__getitem__, default=0)
        waited = len(self._losses) - 1 - best
        if waited < self.patience or not self._reason:
            return None
        return f"{self._reason}, and the loss has not fallen below {self._losses[best]:.4g} for {waited} steps"

    def end(self) -> None:
        """Nothing is left to evaluate."""

    def _cause(self, step: Step) -> str:
        variances = _numbers(step, step.matching(self.activation_inputs_regex), "variance")
        spreads = {
            name: high - low
            for name in step.collection("gradients")
            if (ends := step.percentiles(name, 5, 95)) is not None
            for low, high in [ends]
        }
        self._causes += bool(variances or spreads)
        if variances and max(variances.values()) > self.threshold * min(variances.values()):
            low, high = (choose(variances, key=variances.__getitem__) for choose in (min, max))
            return f"variance {variances[low]:.3g} of {low} and {variances[high]:.3g} of {high} are far apart"
        if spreads and min(spreads.values()) < self.distribution_range:
            name = min(spreads, key=spreads.__getitem__)
            return f"{name} spreads over {spreads[name]:.3g} only"
        return ""


RULES: Mapping[str, type[Any]] = {
    rule.__name__: rule
    for rule in (
        VanishingGradient,
        ExplodingTensor,
        Overfit,
        Overtraining,
        PoorWeightInitialization,
        LossNotDecreasing,
    )
}


def make_rule(parameters: Mapping[str, str]) -> BuiltIn:
    """The rule of a RuleParameters, whose values are text.

    Raises:
        UserError: for an unknown rule or parameter, or a value that it can't take.
    """
    name = parameters.get("rule_to_invoke", "")
    if name not in RULES:
        raise UserError(f"rule_to_invoke must be one of {', '.join(RULES)}, got {name!r}; AWS has more of them")
    type_names = {field.name: str(field.type) for field in dataclasses.fields(RULES[name])}
    values = {}
    for key, text in parameters.items():
        if key in OF_THE_SERVICE:
            continue
        if key not in type_names:
            matches = difflib.get_close_matches(key, type_names, n=1)
            raise UserError(f"{name} has no parameter {key!r}{f'; did you mean {matches[0]}?' if matches else ''}")
        values[key] = _parse(f"{name}.{key}", type_names[key], text)
    rule: BuiltIn = RULES[name](**values)
    return rule


def _parse(name: str, type_name: str, text: str) -> Any:
    try:
        if type_name == "bool":
            return {"true": True, "false": False}[text.lower()]
        if type_name == "list[str]":
            return [item.strip() for item in text.split(",") if item.strip()]
        return {"float": float, "int": int, "str": str}[type_name](text)
    except (ValueError, KeyError):
        raise UserError(f"{name} must be a {type_name}, got {text!r}") from None


def _chosen(step: Step, collections: Iterable[str], patterns: list[str]) -> list[str]:
    """Tensors of some collections; with patterns, only matching ones."""
    names = {name for collection in collections for name in step.collection(collection)}
    return sorted(name for name in names if not patterns or matches(name, patterns))


def _numbers(step: Step, names: Iterable[str], statistic: str) -> dict[str, float]:
    found = ((name, step.statistic(name, statistic)) for name in names)
    return {name: value for name, value in found if value is not None}


def _loss(step: Step, names: Iterable[str]) -> float | None:
    losses = _numbers(step, names, "mean")
    return fmean(losses.values()) if losses else None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of some patterns anywhere, as smdebug reads them."""
    return any(re.search(pattern, name) for pattern in patterns)
