"""The lines in which a job reports, and the regexes that the service finds metrics by."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_launch.container.metric_lines import (
    REPORTED,
    ReportedLine,
    environment_line,
    facts_line,
    metric_definitions,
    metric_line,
    parse_lines,
    write_line,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(values=st.dictionaries(st.sampled_from(REPORTED), FINITE, min_size=1), epoch=st.integers(1, 10_000))
def test_a_line_comes_back_with_all_its_digits(values: dict[str, float], epoch: int) -> None:
    assert parse_lines([metric_line("metrics", epoch, values)]) == [ReportedLine("metrics", epoch, values)]


@given(values=st.fixed_dictionaries(dict.fromkeys(REPORTED, FINITE)))
def test_each_regex_finds_its_own_metric_and_no_other(values: dict[str, float]) -> None:
    line = metric_line("metrics", 3, values)
    for definition in metric_definitions():
        found = re.findall(definition["Regex"], line)
        assert [float(match) for match in found] == [values[definition["Name"]]]


@given(cut=st.integers(0, 200))
def test_a_line_that_was_cut_gives_no_half_number(cut: int) -> None:
    values = {"val_loss": 0.123456789, "best_val_loss": 1e-05}
    line = metric_line("metrics", 3, values)
    for part in (line[:cut], line[cut:]):
        for definition in metric_definitions():
            for found in re.findall(definition["Regex"], part):
                assert float(found) == values[definition["Name"]]


def test_definitions_are_within_the_limits_of_the_service() -> None:
    definitions = metric_definitions()
    assert len(definitions) <= 40
    assert all(len(definition["Regex"]) <= 500 for definition in definitions)


def test_facts_come_back_as_text() -> None:
    (line,) = parse_lines(["noise", facts_line({"data.classes": 6, "python": "3.11"})])
    assert line.facts == {"data.classes": "6", "python": "3.11"}


def test_the_environment_is_told_from_facts() -> None:
    (line,) = parse_lines([environment_line({"package.torch": "2.14"})])
    assert (line.topic, line.facts) == ("environment", {"package.torch": "2.14"})


def test_noise_says_nothing() -> None:
    assert (
        parse_lines(["[metrics] epoch=1 val_loss=0.5", "val_loss=1", '[facts] {"a"', "[metrics] epoch=x a=1 end"]) == []
    )


def test_a_line_is_one_write(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    write_line("[metrics] epoch=1 val_loss=0.5 end")
    assert capfd.readouterr().out == "before\n[metrics] epoch=1 val_loss=0.5 end\n"
