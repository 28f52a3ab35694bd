"""Two runs side by side: what counts as equal, what is said of what is not, and the page that shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from experiments.config import RunConfig, to_public
from experiments.report.parity import compare, parity_page, write_parity
from experiments.runs.folder import Outcome, RunFolder

EVIL = "<script>alert('package')</script>"
HOME_TAGS = {"origin": "local", "package.torch": "2.14.1", "hardware.cores": "2", "python": "3.11.7", "host": "vm"}
JOB_TAGS = {"origin": "sagemaker", "package.torch": "2.14.1", "hardware.cores": "8", "python": "3.12.1", "job": "job-1"}
FACTS = {"data.fingerprint": "abc", "data.classes": 3}
EPOCHS = (
    {"val_loss": 0.9, "learning_rate": 0.1, "epoch_seconds": 3.0},
    {"val_loss": 0.7, "learning_rate": 0.05, "epoch_seconds": 5.0},
    {"val_loss": 0.1 + 0.2, "learning_rate": 0.0, "epoch_seconds": 4.0},
)
Make = Callable[..., RunFolder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a run that has ended."""

    def run(
        name: str,
        *,
        tags: Mapping[str, str] = HOME_TAGS,
        epochs: tuple[Mapping[str, float], ...] = EPOCHS,
        end: Mapping[str, float] = {},
        **params: object,
    ) -> RunFolder:
        folder = RunFolder(tmp_path / name)
        folder.start(name, {**to_public(RunConfig()), **FACTS, **params}, tags)
        for number, values in enumerate(epochs, start=1):
            folder.record(number, values)
        best = min(epochs, key=lambda values: values["val_loss"])["val_loss"]
        folder.finish(Outcome("COMPLETE", best, {"val_loss": best, **end}))
        return folder

    return run


def changed(epoch: int, **values: float) -> tuple[Mapping[str, float], ...]:
    """The epochs with other values in one of them."""
    return tuple(
        {**metrics, **values} if number == epoch else metrics for number, metrics in enumerate(EPOCHS, start=1)
    )


def test_equal_runs_are_equal_with_other_clocks_and_folders(make: Make) -> None:
    home = make("home", end={"test_loss": 0.5}, **{"data.root": "/photos", "model.weights": "/w/net.safetensors"})
    epochs = tuple({**metrics, "epoch_seconds": 99.0, "images_per_second": 1.0} for metrics in EPOCHS)
    job = make(
        "job",
        tags=JOB_TAGS,
        epochs=epochs,
        end={"test_loss": 0.5, "usd": 0.1},
        **{"data.root": "None", "model.weights": "net.safetensors", "cloud.spot": "True"},
    )
    home.record_system({"system/cpu": 50.0})
    found = compare(home, job)
    # val_loss and learning_rate of each epoch; best_val_loss and test_loss at the end
    assert found.verdict == "equal to the last digit: 4 metrics, 3 epochs"
    by_clock = {pair.metric: (pair.first, pair.second) for pair in found.by_clock}
    assert by_clock == {
        "epoch_seconds": (4.0, 99.0),
        "images_per_second": (None, 1.0),
        "system/cpu": (50.0, None),
        "usd": (None, 0.1),
    }
    assert {setting.name: setting.is_equal for setting in found.environment} == {
        "cloud.spot": False,
        "hardware.cores": False,
        "host": False,
        "origin": False,
        "package.torch": True,
        "python": False,
    }


def test_versions_that_differ_are_named_and_leave_the_verdict_alone(make: Make) -> None:
    assert compare(make("home"), make("job", tags=JOB_TAGS)).packages == "versions of packages: equal"
    tags = {**JOB_TAGS, "package.torch": "2.14.0", "package.numpy": "2.5.3"}
    found = compare(make("home", tags={**HOME_TAGS, "package.optuna": "5.0.0"}), make("job", tags=tags))
    wanted = "numpy missing and 2.5.3, optuna 5.0.0 and missing, torch 2.14.1 and 2.14.0"
    assert found.packages == f"versions of packages: {wanted}"
    assert found.is_equal and not found.contradictions


def test_the_last_digit_of_one_value_is_found_and_named(make: Make) -> None:
    other = math.nextafter(EPOCHS[1]["val_loss"], 1)
    found = compare(make("home"), make("job", tags=JOB_TAGS, epochs=changed(2, val_loss=other)))
    assert found.verdict == "differs: val_loss by up to 1.1e-16 (epoch 2)"
    assert not found.is_equal


def test_the_largest_difference_of_the_objective_is_named(make: Make) -> None:
    epochs = changed(2, val_loss=0.71, learning_rate=9.0)
    found = compare(make("home"), make("job", tags=JOB_TAGS, epochs=(*epochs[:2], {**epochs[2], "val_loss": 0.5})))
    assert found.verdict == "differs: val_loss by up to 0.2 (epoch 3), and 2 more of 3 metrics"


def test_a_difference_at_the_end_alone_is_found(make: Make) -> None:
    found = compare(make("home", end={"test_loss": 0.5}), make("job", tags=JOB_TAGS, end={"test_loss": 0.25}))
    assert found.verdict == "differs: test_loss by up to 0.25 (at the end)"


def test_no_number_equals_no_number_and_nothing_else(make: Make) -> None:
    both = [make(name, epochs=changed(2, train_loss=math.nan)) for name in ("a", "b")]
    assert compare(both[0], both[1]).is_equal
    found = compare(both[0], make("c", epochs=changed(2, train_loss=1.0)))
    assert found.verdict == "differs: train_loss by up to inf (epoch 2)"


def test_a_run_of_fewer_epochs_differs_though_all_that_both_have_is_equal(make: Make) -> None:
    short = make("short", tags=JOB_TAGS, epochs=(*EPOCHS[:1], {**EPOCHS[1], "val_loss": 0.7}))
    short.finish(Outcome("STOPPED"))
    assert compare(make("home"), short).verdict == (
        "differs: 3 and 2 epochs; equal to the last digit: 2 metrics, 2 epochs"
    )


def test_runs_without_a_metric_in_common_are_not_called_equal(make: Make) -> None:
    nothing = RunFolder(make("home").path.with_name("failed"))
    nothing.start("failed", {}, {})
    nothing.finish(Outcome("FAIL", reason="ValueError"))
    found = compare(make("home"), nothing)
    assert not found.is_equal
    assert found.verdict == "nothing to compare: the runs have no metric in common"


@pytest.mark.parametrize(
    "params",
    [
        {"seed": 7},
        {"data.fingerprint": "def"},
        {"optimizer.learning_rate": "0.1"},
        {"trainer.devices": 4},
        {"model.weights": "other.safetensors"},
        {"sweep.metric": "val_accuracy"},
    ],
    ids=lambda params: next(iter(params)),
)
def test_another_experiment_is_said_first(make: Make, params: Mapping[str, object]) -> None:
    found = compare(make("home"), make("job", tags=JOB_TAGS, **params))
    ((name, value),) = params.items()
    before = {**to_public(RunConfig()), **FACTS}[name]
    assert found.verdict == (
        f"not the same experiment ({name} is {before} and {value}): equal to the last digit: 3 metrics, 3 epochs"
    )
    text = parity_page(found)
    assert text.index("Not the same experiment") < text.index("Equal to the last digit") < text.index("<table")


def test_runs_of_before_the_environment_was_tagged_are_compared_too(make: Make) -> None:
    # Then jobs noted their environment among the params, and JSON's words.
    as_params = {f"package.{name}": "1" for name in ("torch", "numpy")}
    job = make("job", tags={}, **{**as_params, "origin": "local", "trainer.profile": "false"})
    found = compare(make("home", tags={}), job)
    assert found.verdict == "equal to the last digit: 3 metrics, 3 epochs"
    assert found.labels == ("home", "job")
    assert [setting.name for setting in found.environment] == ["origin", "package.numpy", "package.torch"]


def test_a_setting_that_one_run_does_not_note_is_shown_and_no_contradiction(make: Make) -> None:
    home = make("home", **{"data.leaked_images": 0})
    found = compare(home, make("job", tags=JOB_TAGS))
    assert not found.contradictions
    assert "data.leaked_images" in {
        setting.name for setting in found.settings if setting.decisive and not setting.is_equal
    }


class Page(HTMLParser):
    """What stands on a page, in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_loads_nothing_and_each_picture_has_words_and_a_table(make: Make) -> None:
    found = compare(make("home"), make("job", tags=JOB_TAGS, epochs=changed(2, val_loss=0.75)))
    text = parity_page(found)
    page = Page(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not page.all("script") and not page.all("link") and "url(" not in text and "@import" not in text
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in page.all("meta"))
    pictures = [index for index, (tag, _) in enumerate(page.elements) if tag == "img"]
    assert len(pictures) == 2, "val_loss and learning_rate; not the seconds"
    for index in pictures:
        assert "at home as a wide blue line and SageMaker job as a dashed orange line" in str(
            page.elements[index][1]["alt"]
        )
        after = [tag for tag, _ in page.elements[index + 1 :]]
        assert after.index("details") < after.index("table") < (after.index("img") if "img" in after else len(after))
    assert len(page.all("caption")) == len(page.all("table")) == text.count('role="region"')
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))


def test_the_tables_have_all_digits(make: Make) -> None:
    found = compare(make("home"), make("job", tags=JOB_TAGS, epochs=changed(3, val_loss=0.3)))
    text = parity_page(found)
    assert "<td>0.30000000000000004</td><td>0.3</td><td>-5.55e-17</td>" in text
    assert "<td>0.9</td><td>0.9</td><td>0</td>" in text


def test_what_runs_say_is_text_on_the_page(make: Make) -> None:
    found = compare(make("home", seed=EVIL), make("job", tags={**JOB_TAGS, "package.torch": EVIL}))
    text = parity_page(found)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 3


def test_both_runs_get_the_page_and_its_numbers(make: Make) -> None:
    folders = [make("home"), make("job", tags=JOB_TAGS, epochs=changed(1, val_loss=0.75), seed=3)]
    pages = write_parity(compare(*folders), folders)
    assert pages == [folder.artifacts / "parity.html" for folder in folders]
    assert pages[0].read_text() == pages[1].read_text()
    read = json.loads((folders[1].artifacts / "parity.json").read_text())
    assert (read["equal"], read["same_experiment"]) == (False, False)
    assert read["verdict"].endswith("differs: val_loss by up to 0.15 (epoch 1)")
    assert {"metric": "val_loss", "epoch": 1, "first": 0.9, "second": 0.75} in read["pairs"]
