"""Any name of an experiment is usable as a tag."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies

from sagemaker_launch.aws.tags import from_tag_value, to_tag_value

ALLOWED = re.compile(r"[\w\s_.:/=+\-@]*")
"""Characters of a tag's value (AWS's tagging reference)."""


@given(strategies.text())
def test_a_text_comes_back_and_its_tag_is_allowed(text: str) -> None:
    value = to_tag_value(text)
    assert from_tag_value(value) == text
    assert ALLOWED.fullmatch(value)


@pytest.mark.parametrize(("text", "value"), [("dogs", "dogs"), ("dogs (1)", "dogs =281=29"), ("a=b", "a=3Db")])
def test_usual_names_stay_readable(text: str, value: str) -> None:
    assert to_tag_value(text) == value
