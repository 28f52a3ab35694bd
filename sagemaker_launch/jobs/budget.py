"""The dollar guard of jobs: the worst-case cost, shown before anything is created."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.errors import UserError
from sagemaker_launch.aws.prices import Price, find_price
from sagemaker_launch.settings.cloud import CloudSettings


class OverBudgetError(UserError):
    """The worst-case cost exceeds the budget; nothing was created."""


FREE_RULES = Price(0.0, "free of charge on AWS's own machines (developer guide on built-in rules, read 2026-11)")


@dataclass(frozen=True)
class RuleProcessing:
    """Instances that evaluate Debugger's rules, each for at most the time limit of the job."""

    rules: int
    instance_type: str | None
    """None for AWS's own machines."""
    price: Price

    @property
    def usd_per_hour(self) -> float:
        """Dollars per hour of all rules of one job."""
        return self.rules * self.price.usd_per_hour

    def line(self, hours: float) -> str:
        """The computation as text, for a person to check."""
        if self.instance_type is None:
            return f"          {self.rules} Debugger rules: {self.price.source}"
        return (
            f"        + {self.rules} Debugger rules x {self.instance_type} x {hours:.2f} h"
            f" x ${self.price.usd_per_hour:.4g}/h = ${hours * self.usd_per_hour:.2f} ({self.price.source})"
        )


@dataclass(frozen=True)
class WorstCase:
    """The cost of jobs that all reach their time limit."""

    jobs: int
    instance_type: str
    instance_count: int
    seconds: int
    """Largest billed time of each job."""
    price: Price
    rules: RuleProcessing | None = None
    """Rule processing of each job with Debugger."""

    @property
    def usd_per_hour(self) -> float:
        """Dollars per hour of one job."""
        rules = 0.0 if self.rules is None else self.rules.usd_per_hour
        return self.instance_count * self.price.usd_per_hour + rules

    @property
    def usd(self) -> float:
        """Dollars of all jobs together."""
        return self.jobs * self.seconds / 3600 * self.usd_per_hour

    def table(self) -> str:
        """The computation as text, for a person to check."""
        hours = self.seconds / 3600
        machines = self.jobs * self.instance_count * hours * self.price.usd_per_hour
        lines = [
            f"at worst  {self.jobs} job{'s' if self.jobs > 1 else ''} x {self.instance_count} {self.instance_type}"
            f" x {hours:.2f} h x ${self.price.usd_per_hour:.4g}/h = ${machines:.2f}"
        ]
        if self.rules is not None:
            lines += [self.rules.line(self.jobs * hours), f"          in all ${self.usd:.2f}"]
        lines.append(f"          price: {self.price.source}; disks, S3 and transfer (cents, as a rule) are not in it")
        return "\n".join(lines)

    def check_budget(self, settings: CloudSettings) -> None:
        """Refuse jobs whose worst-case cost exceeds the budget.

        Raises:
            OverBudgetError: if no budget is set, or the worst case is above it.
        """
        if settings.budget_usd is None:
            raise OverBudgetError(
                "cloud.budget_usd must be set before anything is started "
                f"(--cloud.budget_usd {self.usd:.2f} allows this)"
            )
        if self.usd > settings.budget_usd:
            raise OverBudgetError(
                f"cloud.budget_usd must be at least {self.usd:.2f}, the worst case, got {settings.budget_usd:g}: "
                "raise it, or lower sweep.n_trials, cloud.max_runtime_seconds or cloud.instance_type"
            )


def worst_case(settings: CloudSettings, price: Price, *, jobs: int, rules: RuleProcessing | None = None) -> WorstCase:
    """The worst-case cost of `jobs` training jobs; also on spot, which never costs more."""
    # AWS counts all attempts of a retried job together (CreateTrainingJob, StoppingCondition, read 2026-11).
    seconds = settings.max_runtime_seconds + settings.keep_alive_seconds
    return WorstCase(jobs, settings.instance_type, settings.instance_count, seconds, price, rules)


def rule_processing(settings: CloudSettings, region: str) -> RuleProcessing | None:
    """The instances that evaluate the rules of a job with Debugger; None without rules.

    Raises:
        UserError: if no price is known for the instance type of the rules.
    """
    debugger = settings.debugger
    count = len(debugger.rules) + debugger.profiler
    if not debugger.enabled or not count:
        return None
    if debugger.rule_instance_type is None:
        return RuleProcessing(count, None, FREE_RULES)
    price = find_price(settings, debugger.rule_instance_type, region, component="Processing")
    return RuleProcessing(count, debugger.rule_instance_type, price)
