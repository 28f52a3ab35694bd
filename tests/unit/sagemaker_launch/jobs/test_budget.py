"""The dollar guard."""

from __future__ import annotations

import pytest

from sagemaker_launch.aws import prices
from sagemaker_launch.aws.prices import Price
from sagemaker_launch.jobs.budget import OverBudgetError, rule_processing, worst_case
from sagemaker_launch.settings.cloud import load_cloud
from tests.unit.sagemaker_launch.aws.test_prices import LISTED, PriceList

PRICE = Price(0.5, "a test")


def test_the_worst_case_is_every_job_on_every_machine_until_it_is_stopped() -> None:
    settings = load_cloud(None, {"max_runtime_seconds": 7200, "instance_count": 3, "keep_alive_seconds": 1800})
    worst = worst_case(settings, PRICE, jobs=4)
    assert worst.usd == pytest.approx(4 * 3 * 2.5 * 0.5)
    assert "$15.00" in worst.table()


def test_rules_on_machines_of_ones_own_are_in_the_worst_case(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(prices, "client", lambda *_, **__: PriceList([LISTED]))
    monkeypatch.setattr(
        prices,
        "_listed_price",
        lambda _, instance_type, __, component: asked.append(f"{component} {instance_type}") or 0.2,
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
        worst.check_budget(settings)


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
            worst_case(settings, PRICE, jobs=10).check_budget(settings)
    settings = load_cloud(None, {"max_runtime_seconds": 3600, "budget_usd": 5})
    worst_case(settings, PRICE, jobs=10).check_budget(settings)
