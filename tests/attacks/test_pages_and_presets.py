"""Names and files of other people on pages and in presets: text stays text, and every preset is read or refused."""

from __future__ import annotations

import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.config import load_config
from experiments.errors import UserError
from experiments.report.report import write_report
from lightning_modules.insight.profile_page import page as profile_page
from sagemaker_launch.debugger.page import write_report as write_debugger_report
from tests.unit.experiments.report.test_parity import JOB_TAGS, Make, compare, make, parity_page  # noqa: F401
from tests.unit.experiments.report.test_report import sweep
from tests.unit.lightning_modules.insight.test_profiler import on_gpu

pytestmark = pytest.mark.slow

FRAGMENTS = (
    *("<script>alert(1)</script>", "</script>", "</title>", "</style>", "<!--", "-->", "]]>"),
    *("<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' onload='alert(1)", "javascript:alert(1)"),
    *("&lt;script&gt;", "&#60;b&#62;", "<svg/onload=x>", "<a href='http://example.com'>", "<b>"),
    *("{{7*7}}", "{% raw %}", "${x}", "%s%n", "\\u003cscript\\u003e", "\x00", "\u202e"),
)


def names() -> st.SearchStrategy[str]:
    """Names with markup, scripts, templates and any other letters, which a folder or a metric may have."""
    words = st.one_of(st.sampled_from(FRAGMENTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
    return st.lists(words, min_size=1, max_size=4).map("".join)


class Skeleton(HTMLParser):
    """The elements of a page with the names of their attributes, and all that could run or load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.active: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self._in_script = tag == "script" and ("type", "application/json") not in attrs
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href") and not (value or "").startswith(("data:", "#"))):
                self.active.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def assert_same(hostile: str, harmless: str) -> None:
    """The page has the elements and scripts of a page with harmless names."""
    found, expected = Skeleton(hostile), Skeleton(harmless)
    assert found.elements == expected.elements
    assert found.active == expected.active
    assert found.scripts == expected.scripts


def report(name: str, path: Path) -> str:
    """A report whose study, objective's reasons, data set and trials have this name."""
    study = sweep(name)
    study.set_user_attr("data.name", name)
    for number in range(2):
        trial = study.trials[number]
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.FAIL,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"failure_reason": name, "host": name},
            )
        )
    write_report([study], path)
    return path.read_text(encoding="utf-8")


SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(name=names())
def test_a_report_has_the_elements_that_it_has_with_harmless_names(name: str, tmp_path: Path) -> None:
    assert_same(report(name, tmp_path / "report.html"), report("dogs", tmp_path / "report.html"))


@pytest.mark.filterwarnings("ignore:Glyph")  # of letters that matplotlib's font lacks
@SETTINGS
@given(name=names())
def test_a_debugger_report_has_the_elements_that_it_has_with_harmless_names(name: str, tmp_path: Path) -> None:
    def text(name: str) -> str:
        layer = {"collection": "gradients", "points": [{"step": 0, "mode": "TRAIN", "abs_mean": 1.0}]}
        status = {"RuleConfigurationName": name, "RuleEvaluationStatus": "IssuesFound", "StatusDetails": name}
        rules = [status | {"by": "me", "when": "step 0"}]
        write_debugger_report(name, {"Job": name}, {"losses": {}, "tensors": {name: layer}}, rules, tmp_path / "a.html")
        return (tmp_path / "a.html").read_text(encoding="utf-8")

    assert_same(text(name), text("layer1"))


@pytest.mark.parametrize("name", FRAGMENTS, ids=range(len(FRAGMENTS)))
def test_a_parity_page_has_the_elements_that_it_has_with_harmless_names(
    name: str,
    make: Make,  # noqa: F811
) -> None:
    def text(name: str, at_home: str, job: str) -> str:
        tags = {**JOB_TAGS, "package.torch": name, "job": name}
        return parity_page(compare(make(at_home, seed=name), make(job, tags=tags)))

    assert_same(text(name, "home", "job"), text("3", "home2", "job2"))


@settings(max_examples=100, deadline=None)
@given(name=names())
def test_a_profile_has_the_elements_that_it_has_with_harmless_names(name: str) -> None:
    def text(name: str) -> str:
        return profile_page(replace(on_gpu(0.5, wait_place=name), gpu=name), name)

    assert_same(text(name), text("conv"))


HOSTILE = (
    *("!!python/object/apply:os.system ['touch mark']", "!!python/name:os.system", "!!python/module:os", "!foo bar"),
    *("!!binary YWJj", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp 2020-01-01", "!!timestamp 2020-99-01"),
    *("&a [*a]", "*b", "<<: *a", "---", "%YAML 9.9", "? [a] : b", "[" * 2000, "{a: " * 500),
    *("9" * 5000, "1e999", ".inf", ".nan", "-0", "0x" + "f" * 300, "null", "~", "'", '"', "|", ">"),
    *("../../etc/passwd", "file:///etc/passwd", "${HOME}", "`id`", "$(id)", "\x00", "\ufeff", "\u2028"),
)
VALUES = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from(HOSTILE))
KEYS = st.one_of(
    st.sampled_from(["seed", "data", "data.root", "model", "model.weights", "sweep", "sweep.storage", "tracking.uri"]),
    VALUES,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.tuples(KEYS, VALUES, st.integers(0, 3)), max_size=6), tail=st.binary(max_size=20))
def test_a_preset_is_read_or_refused_in_one_sentence(
    lines: list[tuple[str, str, int]], tail: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "".join(f"{'  ' * indent}{key}: {value}\n" for key, value, indent in lines)
    (tmp_path / "mine.yaml").write_bytes(text.encode() + tail)
    begun = time.monotonic()
    try:
        load_config(tmp_path / "mine.yaml")
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert time.monotonic() - begun < 5
    assert [one.name for one in tmp_path.iterdir()] == ["mine.yaml"]
