"""The dollar guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagemaker_launch.jobs import budget
from sagemaker_launch.jobs.budget import OverBudgetError, Price, check_budget, find_price, rule_processing, worst_case
from sagemaker_launch.settings.cloud import load_cloud
from tests.conftest import REPOSITORY

PRICE = Price(0.5, "a test")
PRICES = REPOSITORY / "conf" / "cloud" / "prices.yaml"


def test_the_worst_case_is_every_job_on_every_machine_until_it_is_stopped() -> None:
    settings = load_cloud(None, {"max_runtime_seconds": 7200, "instance_count": 3, "keep_alive_seconds": 1800})
    worst = worst_case(settings, PRICE, jobs=4)
    assert worst.usd == pytest.approx(4 * 3 * 2.5 * 0.5)
    assert "$15.00" in worst.table()


def test_rules_on_machines_of_ones_own_are_in_the_worst_case(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(budget, "client", lambda *_, **__: PriceList([LISTED]))
    monkeypatch.setattr(
        budget, "_listed_price", lambda _, kind, __, component: asked.append(f"{component} {kind}") or 0.2
    )
    paid = {"debugger.rule_instance_type": "ml.t3.medium", "debugger.rules": ["Overfit", "Overtraining"]}
    values: dict[str, object] = {"max_runtime_seconds": 7200, "debugger.enabled": True, "budget_usd": 1}
    settings = load_cloud(None, values | paid)
    worst = worst_case(settings, PRICE, jobs=1, rules=rule_processing(settings, "us-east-1"))
    assert asked == ["Processing ml.t3.medium"]
    # Two rules and the profiler's report, each for two hours.
    assert worst.usd == pytest.approx(2 * 0.5 + 3 * 2 * 0.2)
    assert "+ 3 Debugger rules x ml.t3.medium x 2.00 h x $0.2/h = $1.20" in worst.table()
    assert "in all $2.20" in worst.table()
    with pytest.raises(OverBudgetError, match=r"at least 2\.20"):
        check_budget(settings, worst)


def test_rules_on_machines_of_aws_cost_nothing_and_the_table_says_so() -> None:
    settings = load_cloud(None, {"max_runtime_seconds": 7200, "debugger.enabled": True})
    worst = worst_case(settings, PRICE, jobs=1, rules=rule_processing(settings, "us-east-1"))
    assert worst.usd == pytest.approx(1.0)
    assert "6 Debugger rules: free of charge on AWS's own machines" in worst.table()
    assert rule_processing(load_cloud(None, {}), "us-east-1") is None


def test_no_budget_and_too_small_a_budget_are_refused_with_the_sum() -> None:
    for values, message in (({}, r"budget_usd 5\.00 allows this"), ({"budget_usd": 4.99}, "at least 5.00")):
        settings = load_cloud(None, {"max_runtime_seconds": 3600, **values})
        with pytest.raises(OverBudgetError, match=message):
            check_budget(settings, worst_case(settings, PRICE, jobs=10))
    settings = load_cloud(None, {"max_runtime_seconds": 3600, "budget_usd": 5})
    check_budget(settings, worst_case(settings, PRICE, jobs=10))


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
    monkeypatch.setattr(budget, "client", lambda *_, **__: PriceList([LISTED]))
    price = find_price(load_cloud(None, {"instance_type": "ml.g4dn.xlarge"}), "us-east-1", prices=PRICES)
    assert price == Price(0.736, "AWS's price list, us-east-1")


def test_without_an_answer_the_table_is_named_with_its_date(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    monkeypatch.setattr(budget, "client", lambda *_, **__: PriceList(NoCredentialsError()))
    settings = load_cloud(None, {"instance_type": "ml.m5.large"})
    price = find_price(settings, "us-east-1", prices=PRICES)
    assert price.usd_per_hour == 0.115
    assert "2026-11-24" in price.source
    assert "NoCredentialsError" in price.source
    with pytest.raises(ValueError, match="set --price-per-hour"):
        find_price(settings, "eu-north-1", prices=PRICES)


def test_a_given_price_is_taken_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "client", lambda *_, **__: pytest.fail("asked"))
    settings = load_cloud(None, {"price_per_hour": 9.5})
    assert find_price(settings, "nowhere", prices=Path("none")) == Price(9.5, "cloud.price_per_hour")
