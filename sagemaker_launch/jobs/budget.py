"""The dollar guard: what a command may cost at worst, reckoned and shown before anything is created."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from experiments.errors import UserError
from experiments.yaml_files import read_yaml
from sagemaker_launch.aws.client import client, is_rehearsal
from sagemaker_launch.settings.cloud import CloudSettings

PRICES = Path("conf/cloud/prices.yaml")
SERVERLESS = "serverless_gb_second"
"""Name in that file of what a serverless endpoint costs for a second and a gigabyte of memory."""


class OverBudgetError(UserError):
    """The worst case is dearer than `cloud.budget_usd`; nothing was created."""


@dataclass(frozen=True)
class Price:
    """Dollars an hour of one machine, and who says so."""

    usd_per_hour: float
    source: str


FREE_RULES = Price(0.0, "free of charge on AWS's own machines (developer guide on built-in rules, read 2026-11)")


@dataclass(frozen=True)
class RuleProcessing:
    """Machines that evaluate Debugger's rules beside a job, each as long as the job runs at worst."""

    rules: int
    instance_type: str | None
    """None for AWS's own machines."""
    price: Price

    @property
    def usd_per_hour(self) -> float:
        """Dollars an hour of all rules of one job."""
        return self.rules * self.price.usd_per_hour

    def line(self, hours: float) -> str:
        """The sum as a person checks it."""
        if self.instance_type is None:
            return f"          {self.rules} Debugger rules: {self.price.source}"
        return (
            f"        + {self.rules} Debugger rules x {self.instance_type} x {hours:.2f} h"
            f" x ${self.price.usd_per_hour:.4g}/h = ${hours * self.usd_per_hour:.2f} ({self.price.source})"
        )


@dataclass(frozen=True)
class WorstCase:
    """What jobs cost if every one of them runs until it is stopped."""

    jobs: int
    instance_type: str
    instance_count: int
    seconds: int
    """Billed at most for each job."""
    price: Price
    rules: RuleProcessing | None = None
    """Of each job that Debugger watches."""

    @property
    def usd_per_hour(self) -> float:
        """Dollars an hour of one job."""
        rules = 0.0 if self.rules is None else self.rules.usd_per_hour
        return self.instance_count * self.price.usd_per_hour + rules

    @property
    def usd(self) -> float:
        """Dollars in all."""
        return self.jobs * self.seconds / 3600 * self.usd_per_hour

    def table(self) -> str:
        """The sum as a person checks it."""
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


def worst_case(settings: CloudSettings, price: Price, *, jobs: int, rules: RuleProcessing | None = None) -> WorstCase:
    """What `jobs` training jobs cost at worst; on spot too, which is never dearer."""
    # AWS counts all attempts of a retried job together (CreateTrainingJob, StoppingCondition, read 2026-11).
    seconds = settings.max_runtime_seconds + settings.keep_alive_seconds
    return WorstCase(jobs, settings.instance_type, settings.instance_count, seconds, price, rules)


def rule_processing(settings: CloudSettings, region: str) -> RuleProcessing | None:
    """What evaluates the rules of a job that Debugger watches; None without rules.

    Raises:
        UserError: if nobody knows the price of the machines that are set.
    """
    debugger = settings.debugger
    count = len(debugger.rules) + debugger.profiler
    if not debugger.enabled or not count:
        return None
    if debugger.rule_instance_type is None:
        return RuleProcessing(count, None, FREE_RULES)
    machine = replace(settings, instance_type=debugger.rule_instance_type)
    return RuleProcessing(count, debugger.rule_instance_type, find_price(machine, region, component="Processing"))


def check_budget(settings: CloudSettings, worst: WorstCase) -> None:
    """Refuse what may become too dear.

    Raises:
        OverBudgetError: if no budget is set, or the worst case is above it.
    """
    if settings.budget_usd is None:
        raise OverBudgetError(
            f"cloud.budget_usd must be set before anything is started (--cloud.budget_usd {worst.usd:.2f} allows this)"
        )
    if worst.usd > settings.budget_usd:
        raise OverBudgetError(
            f"cloud.budget_usd must be at least {worst.usd:.2f}, the worst case, got {settings.budget_usd:g}: "
            "raise it, or lower sweep.n_trials, cloud.max_runtime_seconds or cloud.instance_type"
        )


@dataclass(frozen=True)
class HourlyWorst:
    """What an endpoint costs an hour if it runs on all the machines that it may have."""

    what: str
    """A machine, or what a serverless endpoint is billed by."""
    count: int
    price: Price
    fleets: int = 1
    """2 while an update has the new machines beside the old ones."""

    @property
    def steady_usd(self) -> float:
        """Dollars an hour."""
        return self.count * self.price.usd_per_hour

    @property
    def usd(self) -> float:
        """Dollars in an hour in which it is updated, if there is one."""
        return self.fleets * self.steady_usd

    def table(self) -> str:
        """The sum as a person checks it."""
        double = ""
        if self.fleets > 1:
            double = f"\n          ${self.usd:.2f} an hour while the new machines run beside the old ones"
        return (
            f"at worst  {self.count} x {self.what} x ${self.price.usd_per_hour:.4g}/h = ${self.steady_usd:.2f} an hour,"
            f" ${24 * self.steady_usd:.2f} a day{double}\n"
            f"          price: {self.price.source}; disks, S3 and transfer (cents, as a rule) are not in it"
        )


def hourly_worst(settings: CloudSettings, region: str) -> HourlyWorst:
    """What an endpoint costs an hour at worst.

    Raises:
        UserError: if nobody knows a price.
    """
    endpoint = settings.endpoint
    if endpoint.kind != "serverless":
        price = find_price(replace(settings, instance_type=endpoint.instance_type), region, component="Hosting")
        return HourlyWorst(endpoint.instance_type, endpoint.max_instances, price)
    what = f"request of {endpoint.memory_mb} MB all the time"
    if settings.price_per_hour is not None:
        price = Price(settings.price_per_hour, "cloud.price_per_hour")
    else:
        table = _table(PRICES)
        second = table.get(region, {}).get(SERVERLESS)
        if second is None:
            raise UserError(
                f"serverless endpoints in {region} must have a price ({PRICES} has none): look up what "
                f"{endpoint.memory_mb} MB cost for an hour and set --price-per-hour"
            )
        usd = float(second) * endpoint.memory_mb / 1024 * 3600
        price = Price(usd, f"{PRICES} of {table['as_of']}, {region}")
    return HourlyWorst(what, endpoint.max_concurrency, price)


def check_hourly_budget(settings: CloudSettings, worst: HourlyWorst) -> None:
    """Refuse an endpoint that may become too dear.

    Raises:
        OverBudgetError: if no budget is set, or the worst case is above it.
    """
    budget, name = settings.endpoint.budget_usd_per_hour, "cloud.endpoint.budget_usd_per_hour"
    if budget is None:
        raise OverBudgetError(f"{name} must be set before anything is deployed (--{name} {_up(worst.usd)} allows this)")
    if worst.usd > budget:
        raise OverBudgetError(
            f"{name} must be at least {_up(worst.usd)}, the worst case, got {budget:g}: raise it, or lower "
            "cloud.endpoint.max_instances, max_concurrency or instance_type"
        )


def _up(usd: float) -> str:
    """In cents, never less than it is."""
    return f"{math.ceil(round(usd * 100, 6)) / 100:.2f}"


def price_finder(settings: CloudSettings, region: str, component: str = "Training") -> Callable[[str], float]:
    """Dollars an hour by instance type, each looked up once.

    Raises:
        UserError: from the finder, if nobody knows a price.
    """
    return cache(
        lambda kind: find_price(replace(settings, instance_type=kind), region, component=component).usd_per_hour
    )


def find_price(settings: CloudSettings, region: str, *, component: str = "Training", prices: Path = PRICES) -> Price:
    """Dollars an hour of the settings' instance type.

    Args:
        component: of SageMaker, as the price list calls it: Training, Hosting or Processing.

    Raises:
        UserError: if nobody knows it.
    """
    if settings.price_per_hour is not None:
        return Price(settings.price_per_hour, "cloud.price_per_hour")
    # It lives in us-east-1 and is not worth waiting for.
    options = {"connect_timeout": 1, "read_timeout": 2, "retries": {"total_max_attempts": 1}}
    pricing = client("pricing", replace(settings, region="us-east-1"), **options)
    try:
        listed = None if is_rehearsal(pricing) else _listed_price(pricing, settings.instance_type, region, component)
        why = "a rehearsal has no price list" if is_rehearsal(pricing) else "AWS's price list does not have it"
    except (BotoCoreError, ClientError) as error:
        listed, why = None, f"AWS's price list did not answer: {type(error).__name__}"
    if listed is not None:
        return Price(listed, f"AWS's price list, {region}")
    table = _table(prices)
    known = table.get(region, {}).get(settings.instance_type)
    if known is None:
        raise UserError(
            f"{settings.instance_type} in {region} must have a price ({why}, {prices} has none): "
            "look it up and set --price-per-hour"
        )
    return Price(float(known), f"{prices} of {table['as_of']}, {region} ({why})")


def _table(prices: Path) -> dict[str, Any]:
    table = read_yaml(prices, "the price list") if prices.is_file() else {}
    assert isinstance(table, dict)
    return table


def _listed_price(pricing: Any, instance_type: str, region: str, component: str) -> float | None:
    """What the AWS Price List API says."""
    wanted = {"instanceName": instance_type, "regionCode": region, "component": component}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    found = pricing.get_products(ServiceCode="AmazonSageMaker", Filters=filters, MaxResults=10)
    prices = [price for product in found["PriceList"] if (price := _on_demand(json.loads(product)))]
    return max(prices, default=None)


def _on_demand(product: dict[str, Any]) -> float | None:
    terms = product.get("terms", {}).get("OnDemand", {}).values()
    prices = [
        float(dimension["pricePerUnit"]["USD"]) for term in terms for dimension in term["priceDimensions"].values()
    ]
    return max(prices, default=None)
