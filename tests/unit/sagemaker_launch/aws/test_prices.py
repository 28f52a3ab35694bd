"""What a machine costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagemaker_launch.aws import prices
from sagemaker_launch.aws.prices import Price, find_price
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import REPOSITORY

PRICES = REPOSITORY / "conf" / "cloud" / "prices.yaml"


class PriceList:
    """AWS's price list as it answers, or not."""

    class meta:
        endpoint_url = "https://api.pricing.us-east-1.amazonaws.com"

    def __init__(self, answer: list[str] | Exception) -> None:
        self._answer = answer

    def get_products(self, **_: Any) -> dict[str, Any]:
        if isinstance(self._answer, Exception):
            raise self._answer
        return {"PriceList": self._answer}


LISTED = '{"terms": {"OnDemand": {"a": {"priceDimensions": {"b": {"pricePerUnit": {"USD": "0.7360000000"}}}}}}}'


def test_the_price_list_goes_before_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "client", lambda *_, **__: PriceList([LISTED]))
    price = find_price(load_cloud(None, {"instance_type": "ml.g4dn.xlarge"}), "us-east-1", prices=PRICES)
    assert price == Price(0.736, "AWS's price list, us-east-1")


def test_without_an_answer_the_table_is_named_with_its_date(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    monkeypatch.setattr(prices, "client", lambda *_, **__: PriceList(NoCredentialsError()))
    settings = load_cloud(None, {"instance_type": "ml.m5.large"})
    price = find_price(settings, "us-east-1", prices=PRICES)
    assert price.usd_per_hour == 0.115
    assert "2026-11-24" in price.source
    assert "NoCredentialsError" in price.source
    with pytest.raises(ValueError, match="set --price-per-hour"):
        find_price(settings, "eu-north-1", prices=PRICES)


def test_a_given_price_is_taken_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "client", lambda *_, **__: pytest.fail("asked"))
    settings = load_cloud(None, {"price_per_hour": 9.5})
    assert find_price(settings, "nowhere", prices=Path("none")) == Price(9.5, "cloud.price_per_hour")
