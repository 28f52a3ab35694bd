"""The dollar guard: what a command may cost at worst, reckoned and shown before anything is created."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from experiments.config import read_yaml
from sagemaker_launch.aws import client, is_rehearsal
from sagemaker_launch.settings import CloudSettings

PRICES = Path("conf/cloud/prices.yaml")


class OverBudgetError(ValueError):
    """The worst case is dearer than `cloud.budget_usd`; nothing was created."""


@dataclass(frozen=True)
class Price:
    """Dollars an hour of one machine, and who says so."""

    usd_per_hour: float
    source: str


@dataclass(frozen=True)
class WorstCase:
    """What jobs cost if every one of them runs until it is stopped."""

    jobs: int
    instance_type: str
    instance_count: int
    seconds: int
    """Billed at most for each job."""
    price: Price

    @property
    def usd(self) -> float:
        """Dollars in all."""
        return self.jobs * self.instance_count * self.seconds / 3600 * self.price.usd_per_hour

    def table(self) -> str:
        """The sum as a person checks it."""
        return (
            f"at worst  {self.jobs} job{'s' if self.jobs > 1 else ''} x {self.instance_count} {self.instance_type}"
            f" x {self.seconds / 3600:.2f} h x ${self.price.usd_per_hour:.4g}/h = ${self.usd:.2f}\n"
            f"          price: {self.price.source}; disks, S3 and transfer (cents, as a rule) are not in it"
        )


def worst_case(settings: CloudSettings, price: Price, *, jobs: int) -> WorstCase:
    """What `jobs` training jobs cost at worst; on spot too, which is never dearer."""
    # AWS counts all attempts of a retried job together (CreateTrainingJob, StoppingCondition, read 2026-11).
    seconds = settings.max_runtime_seconds + settings.keep_alive_seconds
    return WorstCase(jobs, settings.instance_type, settings.instance_count, seconds, price)


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


def price_finder(settings: CloudSettings, region: str) -> Callable[[str], float]:
    """Dollars an hour by instance type, each looked up once.

    Raises:
        ValueError: from the finder, if nobody knows a price.
    """
    return cache(lambda kind: find_price(replace(settings, instance_type=kind), region).usd_per_hour)


def find_price(settings: CloudSettings, region: str, *, prices: Path = PRICES) -> Price:
    """Dollars an hour of the settings' instance type.

    Raises:
        ValueError: if nobody knows it.
    """
    if settings.price_per_hour is not None:
        return Price(settings.price_per_hour, "cloud.price_per_hour")
    # It lives in us-east-1 and is not worth waiting for.
    options = {"connect_timeout": 1, "read_timeout": 2, "retries": {"total_max_attempts": 1}}
    pricing = client("pricing", replace(settings, region="us-east-1"), **options)
    try:
        listed = None if is_rehearsal(pricing) else _listed_price(pricing, settings.instance_type, region)
        why = "a rehearsal has no price list" if is_rehearsal(pricing) else "AWS's price list does not have it"
    except (BotoCoreError, ClientError) as error:
        listed, why = None, f"AWS's price list did not answer: {type(error).__name__}"
    if listed is not None:
        return Price(listed, f"AWS's price list, {region}")
    table = read_yaml(prices) if prices.is_file() else {}
    assert isinstance(table, dict)
    known = table.get(region, {}).get(settings.instance_type)
    if known is None:
        raise ValueError(
            f"{settings.instance_type} in {region} must have a price ({why}, {prices} has none): "
            "look it up and set --price-per-hour"
        )
    return Price(float(known), f"{prices} of {table['as_of']}, {region} ({why})")


def _listed_price(pricing: Any, instance_type: str, region: str) -> float | None:
    """What the AWS Price List API says."""
    wanted = {"instanceName": instance_type, "regionCode": region, "component": "Training"}
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
