"""What a machine costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagemaker_launch.aws import prices
from sagemaker_launch.aws.prices import Price, own_price, price_finder
from sagemaker_launch.jobs.budget import rule_processing
from sagemaker_launch.settings.cloud import load_cloud


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
    price = own_price(load_cloud(None, {"instance_type": "ml.g4dn.xlarge"}), "us-east-1")
    assert price == Price(0.736, "AWS's price list, us-east-1")


def test_without_an_answer_the_table_is_named_with_its_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from botocore.exceptions import NoCredentialsError

    monkeypatch.chdir(tmp_path)  # the table is found from any folder
    monkeypatch.setattr(prices, "client", lambda *_, **__: PriceList(NoCredentialsError()))
    settings = load_cloud(None, {"instance_type": "ml.m5.large"})
    price = own_price(settings, "us-east-1")
    assert price.usd_per_hour == 0.115
    assert "2026-11-24" in price.source
    assert "NoCredentialsError" in price.source
    with pytest.raises(ValueError, match="set --price-per-hour"):
        own_price(settings, "eu-north-1")


def test_a_given_price_is_taken_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "client", lambda *_, **__: pytest.fail("asked"))
    settings = load_cloud(None, {"price_per_hour": 9.5})
    assert own_price(settings, "nowhere") == Price(9.5, "cloud.price_per_hour")
    assert own_price(settings, "nowhere", component="Hosting") == Price(9.5, "cloud.price_per_hour")


def test_a_given_price_is_that_of_the_own_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "client", lambda *_, **__: PriceList([]))
    settings = load_cloud(
        None,
        {
            "instance_type": "ml.p4d.24xlarge",
            "price_per_hour": 32.77,
            "debugger.enabled": True,
            "debugger.rule_instance_type": "ml.t3.medium",
        },
    )
    rules = rule_processing(settings, "us-east-1")
    assert rules is not None
    assert rules.price.usd_per_hour == 0.05
    with pytest.raises(ValueError, match="choose another type"):
        rule_processing(settings, "eu-north-1")  # --price-per-hour would not help
    usd_per_hour = price_finder(settings, "us-east-1")
    assert usd_per_hour("ml.p4d.24xlarge") == 32.77
    assert usd_per_hour("ml.m5.large") == 0.115
    assert usd_per_hour("ml.p5.48xlarge") == 32.77  # no list has it: the person says what it costs
    assert price_finder(settings, "us-east-1", "Hosting")("ml.p4d.24xlarge") == 32.77
