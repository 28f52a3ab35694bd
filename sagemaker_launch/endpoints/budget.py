"""The dollar guard of endpoints: the worst-case cost per hour, shown before anything is created."""

from __future__ import annotations

import math
from dataclasses import dataclass

from experiments.errors import UserError
from sagemaker_launch.aws.prices import Price, known_price, own_price
from sagemaker_launch.jobs.budget import OverBudgetError
from sagemaker_launch.settings.cloud import CloudSettings

SERVERLESS = "serverless_gb_second"
"""Name in the price table: cost of a serverless endpoint per second and gigabyte of memory."""


@dataclass(frozen=True)
class HourlyWorst:
    """The cost per hour of an endpoint with the largest number of instances that it may have."""

    unit: str
    """Instance type, or the unit by which a serverless endpoint is billed."""
    count: int
    price: Price
    fleets: int = 1
    """2 if an update runs new instances beside the old ones."""

    @property
    def steady_usd(self) -> float:
        """Dollars per hour without an update."""
        return self.count * self.price.usd_per_hour

    @property
    def usd(self) -> float:
        """Dollars in an hour with an update, if it is updated."""
        return self.fleets * self.steady_usd

    def table(self) -> str:
        """The computation as text, for a person to check."""
        double = ""
        if self.fleets > 1:
            double = f"\n          ${self.usd:.2f} an hour while the new machines run beside the old ones"
        return (
            f"at worst  {self.count} x {self.unit} x ${self.price.usd_per_hour:.4g}/h = ${self.steady_usd:.2f} an hour,"
            f" ${24 * self.steady_usd:.2f} a day{double}\n"
            f"          price: {self.price.source}; disks, S3 and transfer (cents, as a rule) are not in it"
        )

    def check_budget(self, settings: CloudSettings) -> None:
        """Refuse an endpoint whose worst-case cost exceeds the budget.

        Raises:
            OverBudgetError: if no budget is set, or the worst case is above it.
        """
        budget, name = settings.endpoint.budget_usd_per_hour, "cloud.endpoint.budget_usd_per_hour"
        if budget is None:
            raise OverBudgetError(
                f"{name} must be set before anything is deployed (--{name} {_rounded_up(self.usd)} allows this)"
            )
        if self.usd > budget:
            raise OverBudgetError(
                f"{name} must be at least {_rounded_up(self.usd)}, the worst case, got {budget:g}: raise it, or lower "
                "cloud.endpoint.max_instances, max_concurrency or instance_type"
            )


def hourly_worst(settings: CloudSettings, region: str) -> HourlyWorst:
    """The worst-case cost per hour of an endpoint.

    Raises:
        UserError: if no price is known.
    """
    endpoint = settings.endpoint
    if endpoint.kind != "serverless":
        price = own_price(settings, region, component="Hosting")
        return HourlyWorst(endpoint.instance_type, endpoint.max_instances, price)
    unit = f"request of {endpoint.memory_mb} MB all the time"
    if settings.price_per_hour is not None:
        price = Price(settings.price_per_hour, "cloud.price_per_hour")
    else:
        second = known_price(region, SERVERLESS)
        if second is None:
            raise UserError(
                f"serverless endpoints in {region} must have a price (the launcher's table has none): look up what "
                f"{endpoint.memory_mb} MB cost for an hour and set --price-per-hour"
            )
        price = Price(second.usd_per_hour * endpoint.memory_mb / 1024 * 3600, second.source)
    return HourlyWorst(unit, endpoint.max_concurrency, price)


def _rounded_up(usd: float) -> str:
    """An amount as text, rounded up to cents."""
    return f"{math.ceil(round(usd * 100, 6)) / 100:.2f}"
