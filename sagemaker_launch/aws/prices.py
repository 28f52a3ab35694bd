"""Prices of instances: AWS's price list, or the table beside this module."""

from __future__ import annotations

import json
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

PRICES = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Price:
    """Dollars per hour of one instance, and the source of the price."""

    usd_per_hour: float
    source: str


def own_price(settings: CloudSettings, region: str, *, component: str = "Training") -> Price:
    """Dollars per hour of an instance of the settings' own job or endpoint: the given price, else a list's.

    Args:
        component: of SageMaker, as the price list calls it: Training or Hosting.

    Raises:
        UserError: if no price is known.
    """
    if settings.price_per_hour is not None:
        return Price(settings.price_per_hour, "cloud.price_per_hour")
    return find_price(settings, _own_type(settings, component), region, component=component)


def price_finder(settings: CloudSettings, region: str, component: str = "Training") -> Callable[[str], float]:
    """A function from instance type to dollars per hour, which looks each type up once.

    A given price is that of the settings' own type, and of types that no list has.

    Raises:
        UserError: from that function, if no price is known.
    """

    @cache
    def usd_per_hour(instance_type: str) -> float:
        if instance_type == _own_type(settings, component):
            return own_price(settings, region, component=component).usd_per_hour
        try:
            return find_price(settings, instance_type, region, component=component).usd_per_hour
        except UserError:
            if settings.price_per_hour is None:
                raise
            return settings.price_per_hour

    return usd_per_hour


def find_price(settings: CloudSettings, instance_type: str, region: str, *, component: str = "Training") -> Price:
    """Dollars per hour of an instance, by AWS's price list or the table.

    Args:
        component: of SageMaker, as the price list calls it: Training, Hosting or Processing.

    Raises:
        UserError: if no price is known.
    """
    # It lives in us-east-1 and is not worth waiting for.
    options: dict[str, Any] = {"patience_seconds": 0.0, "connect_timeout": 1, "read_timeout": 2}
    pricing = client("pricing", replace(settings, region="us-east-1"), **options)
    try:
        listed = None if is_rehearsal(pricing) else _listed_price(pricing, instance_type, region, component)
        why = "a rehearsal has no price list" if is_rehearsal(pricing) else "AWS's price list does not have it"
    except (BotoCoreError, ClientError) as error:
        listed, why = None, f"AWS's price list did not answer: {type(error).__name__}"
    if listed is not None:
        return Price(listed, f"AWS's price list, {region}")
    known = known_price(region, instance_type)
    if known is None:
        # The given price is never that of Debugger's rules.
        next_step = "choose another type" if component == "Processing" else "look it up and set --price-per-hour"
        raise UserError(
            f"{instance_type} in {region} must have a price ({why}, the launcher's table has none): {next_step}"
        )
    return Price(known.usd_per_hour, f"{known.source} ({why})")


def known_price(region: str, unit: str) -> Price | None:
    """The price in the launcher's table of an instance type or another unit; None if it has none."""
    table = read_yaml(PRICES, "the price table")
    assert isinstance(table, dict)
    usd = table.get(region, {}).get(unit)
    return None if usd is None else Price(float(usd), f"the launcher's table of {table['as_of']}, {region}")


def _own_type(settings: CloudSettings, component: str) -> str:
    return settings.endpoint.instance_type if component == "Hosting" else settings.instance_type


def _listed_price(pricing: Any, instance_type: str, region: str, component: str) -> float | None:
    """The price in the AWS Price List API."""
    criteria = {"instanceName": instance_type, "regionCode": region, "component": component}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in criteria.items()]
    found = pricing.get_products(ServiceCode="AmazonSageMaker", Filters=filters, MaxResults=10)
    prices = [price for product in found["PriceList"] if (price := _on_demand(json.loads(product)))]
    return max(prices, default=None)


def _on_demand(product: dict[str, Any]) -> float | None:
    terms = product.get("terms", {}).get("OnDemand", {}).values()
    prices = [
        float(dimension["pricePerUnit"]["USD"]) for term in terms for dimension in term["priceDimensions"].values()
    ]
    return max(prices, default=None)
