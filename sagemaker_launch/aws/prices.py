"""Prices of instances: AWS's price list, or the table in `conf/cloud/`."""

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

PRICES = Path("conf/cloud/prices.yaml")


@dataclass(frozen=True)
class Price:
    """Dollars per hour of one instance, and the source of the price."""

    usd_per_hour: float
    source: str


def price_finder(settings: CloudSettings, region: str, component: str = "Training") -> Callable[[str], float]:
    """A function from instance type to dollars per hour, which looks each type up once.

    Raises:
        UserError: from that function, if no price is known.
    """
    return cache(
        lambda instance_type: (
            find_price(replace(settings, instance_type=instance_type), region, component=component).usd_per_hour
        )
    )


def find_price(settings: CloudSettings, region: str, *, component: str = "Training", prices: Path = PRICES) -> Price:
    """Dollars per hour of the settings' instance type.

    Args:
        component: of SageMaker, as the price list calls it: Training, Hosting or Processing.

    Raises:
        UserError: if no price is known.
    """
    if settings.price_per_hour is not None:
        return Price(settings.price_per_hour, "cloud.price_per_hour")
    # It lives in us-east-1 and is not worth waiting for.
    options: dict[str, Any] = {"connect_timeout": 1, "read_timeout": 2, "retries": {"total_max_attempts": 1}}
    pricing = client("pricing", replace(settings, region="us-east-1"), **options)
    try:
        listed = None if is_rehearsal(pricing) else _listed_price(pricing, settings.instance_type, region, component)
        why = "a rehearsal has no price list" if is_rehearsal(pricing) else "AWS's price list does not have it"
    except (BotoCoreError, ClientError) as error:
        listed, why = None, f"AWS's price list did not answer: {type(error).__name__}"
    if listed is not None:
        return Price(listed, f"AWS's price list, {region}")
    table = price_table(prices)
    known = table.get(region, {}).get(settings.instance_type)
    if known is None:
        raise UserError(
            f"{settings.instance_type} in {region} must have a price ({why}, {prices} has none): "
            "look it up and set --price-per-hour"
        )
    return Price(float(known), f"{prices} of {table['as_of']}, {region} ({why})")


def price_table(prices: Path) -> dict[str, Any]:
    """The table of prices: region to instance type to dollars per hour, and `as_of`, its date."""
    table = read_yaml(prices, "the price list") if prices.is_file() else {}
    assert isinstance(table, dict)
    return table


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
