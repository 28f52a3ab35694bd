"""Settings of SageMaker Debugger, as `--cloud.debugger.field value` or in a preset."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from experiments.config import require
from experiments.errors import UserError
from experiments.fields import used_by

RULES: Mapping[str, tuple[str, ...]] = {
    "VanishingGradient": ("gradients_every",),
    "Overfit": ("eval_losses_every",),
    "Overtraining": ("eval_losses_every",),
    "PoorWeightInitialization": ("gradients_every", "relu_every"),
    "LossNotDecreasing": (),
}
"""AWS's built-in rules, and the intervals without which they find no tensors (developer guide, read 2026-11)."""
NEEDED_REDUCTIONS = ("abs_mean", "l2_norm")
"""Reductions of weights and gradients that reports and rules read."""
REDUCTION = re.compile(r"(abs_)?(min|max|mean|std|variance|sum|prod|l1_norm|l2_norm)")
"""Names that smdebug 1.0.34 knows."""
PROFILING_INTERVALS_MS = (100, 200, 500, 1000, 5000, 60_000)
"""Allowed values of ProfilerConfig.ProfilingIntervalInMilliseconds (API reference, read 2026-11)."""
MAX_VALUE = 256
"""Characters of a hook's or collection's parameter (API reference, read 2026-11)."""


@dataclass(frozen=True)
class DebuggerSettings:
    """Tensors that are kept of a training job, and the rules that judge them; an interval of 0 keeps none."""

    enabled: bool = False
    """Use SageMaker Debugger, as `train --debug` does; closed to new customers of AWS since 2026-07-30."""
    losses_every: int = 1
    """Training steps between two saved losses."""
    eval_losses_every: int = 1
    """Validation steps between two saved losses."""
    weights_every: int = 500
    """Training steps between two savings of the weights."""
    gradients_every: int = 500
    """Training steps between two savings of the gradients."""
    biases_every: int = 0
    """Training steps between two savings of the biases."""
    relu_every: int = 500
    """Training steps between two savings of the inputs and outputs of modules named relu, as in ResNets."""
    include_regex: str | None = None
    """Further tensors by name: comma-separated regular expressions, which may not contain commas."""
    custom_every: int = 500
    """Training steps between two savings of the tensors that include_regex names."""
    eval_every: int = 0
    """Validation steps between two savings of weights, biases, activations and further tensors."""
    reductions: list[str] = field(default_factory=lambda: ["min", "max", "variance", *NEEDED_REDUCTIONS])
    """What is saved of each tensor: min, max, mean, std, variance, sum, prod, l1_norm, l2_norm; abs_mean and so on of
    absolute values."""
    raw_tensors: bool = False
    """Save whole tensors, hundreds of MB per step, instead of reductions, which can be computed from them later."""
    rules: list[str] = field(default_factory=lambda: list(RULES))
    """AWS's built-in rules that are evaluated while the job runs."""
    rule_image_uri: str | None = None
    """Image that evaluates rules; by default AWS's own of the region."""
    rule_instance_type: str | None = used_by(None, shape="ProcessingInstanceType")
    """Instance type of each rule, billed; by default AWS evaluates its rules on its own instances, free of charge."""
    rule_volume_size_gb: int = 10
    """Disk of each of these instances."""
    profiler: bool = True
    """Sample processors, memory and disk, and report on them; AWS ends its profiler on 2027-06-30."""
    profiling_interval_ms: int = 500
    """Time between two samples."""

    def __post_init__(self) -> None:
        """Refuse values that no job can use."""

        def check(condition: bool, name: str, rule: str) -> None:
            require(condition, f"cloud.debugger.{name}", rule, getattr(self, name))

        check(self.losses_every >= 1, "losses_every", "be >= 1: smdebug always keeps losses")
        for name in vars(self):
            if name.endswith("_every"):
                check(getattr(self, name) >= 0, name, "be >= 0")
        check(
            self.include_regex is None or (0 < len(self.include_regex) <= MAX_VALUE and _compiles(self.include_regex)),
            "include_regex",
            f"be regular expressions, parted by commas, of at most {MAX_VALUE} characters in all",
        )
        for name in self.reductions:
            require(REDUCTION.fullmatch(name) is not None, "cloud.debugger.reductions", "name what smdebug knows", name)
        check(
            self.raw_tensors or set(NEEDED_REDUCTIONS) <= set(self.reductions),
            "reductions",
            f"have {' and '.join(NEEDED_REDUCTIONS)}, which reports need",
        )
        check(len(",".join(self.reductions)) <= MAX_VALUE, "reductions", f"have at most {MAX_VALUE} characters in all")
        self._check_rules()
        check(
            self.rule_instance_type is None or self.rule_instance_type.startswith("ml."),
            "rule_instance_type",
            "begin with ml.",
        )
        check(self.rule_volume_size_gb >= 1, "rule_volume_size_gb", "be >= 1")
        check(
            self.profiling_interval_ms in PROFILING_INTERVALS_MS,
            "profiling_interval_ms",
            f"be one of {PROFILING_INTERVALS_MS}",
        )

    def _check_rules(self) -> None:
        require(len(set(self.rules)) == len(self.rules), "cloud.debugger.rules", "name each rule once", self.rules)
        for rule in self.rules:
            if rule not in RULES:
                matches = difflib.get_close_matches(rule, RULES, n=1)
                hint = f"did you mean {matches[0]}?" if matches else f"rules are {', '.join(RULES)}"
                raise UserError(f"cloud.debugger.rules names unknown rule {rule!r}; {hint}")
            for name in RULES[rule]:
                require(getattr(self, name) > 0, f"cloud.debugger.{name}", f"be > 0 with rule {rule}", 0)


def _compiles(expressions: str) -> bool:
    try:
        return all(re.compile(expression) for expression in expressions.split(","))
    except re.error:
        return False
