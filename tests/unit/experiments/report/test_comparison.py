"""Runs of every origin on one page: which one is the best, what each took, how it errs, how to do it again."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from base64 import b64decode
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
import pytest
from filelock import FileLock
from PIL import Image

from experiments.cli import parse_overrides
from experiments.config import RunConfig, load_config, override, to_flat, to_public
from experiments.figures.pictures import write_tables
from experiments.report.compared_runs import config_of, options_to_repeat, other_runs, runs_of_study
from experiments.report.comparison import _class_plot, _confusion_plot
from experiments.report.report import report_studies
from experiments.runs.folder import Outcome, RunFolder
from experiments.runs.scoring import Scores
from experiments.study.identity import Photos
from experiments.study.storage import open_storage
from experiments.study.study import INPUTS_SECONDS, load_study, trial_folder
from tests.unit.experiments.report.test_report import Element, Page

NAMES = ("cat & dog", "hound")
MINUTE = 60_000
HERE = {"mlflow.source.git.commit": "abc123", "python": "3.11.2", "package.torch": "2.14.1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> RunConfig:
    """A study of two trials, a training of its best, and jobs of both kinds of service, on one set of photos."""
    home = tmp_path_factory.mktemp("compared")
    values = {
        "output_dir": home,
        "data.name": "folder",
        "data.root": photos,
        "model.weights": "none",
        "trainer.early_stopping_patience": 0,
        "sweep.study_name": "tiny",
        "trainer.gradient_clip": 0.5,
    }
    config = load_config(None, values)
    study = optuna.create_study(study_name="tiny", storage=open_storage(config))
    study.set_user_attr("config", to_public(config))
    study.set_user_attr("metric", "val_loss")
    study.set_user_attr("photos", asdict(Photos("same", NAMES, train=24, valid=12, test=0)))
    for number, loss in enumerate((0.5, 0.4)):
        trial = study.ask()
        rate = trial.suggest_float("optimizer.learning_rate", 1e-4, 1e-1, log=True)
        trial.set_user_attr("val_accuracy", 0.7)
        params = to_public(override(config, {"optimizer.learning_rate": rate}))
        noted = {"origin": "local", "host": "home", **HERE}
        finished(trial_folder(config, number), params, noted, {"val_loss": loss, "val_accuracy": 0.7}, minutes=2)
        study.tell(trial, loss)
    params = to_public(override(config, {"seed": 7}))
    tested = {"val_loss": 0.45, "val_accuracy": 0.75, "test_loss": 0.6, "test_accuracy": 0.7}
    finished(RunFolder(home / "train" / "one-000"), params, {"origin": "local"}, tested, minutes=3)
    sent = {**to_public(config), "data.root": "/opt/ml/photos", "cloud.instance_type": "ml.g4dn.xlarge"}
    sent |= {"optimizer.weight_decay": 0.25, "rule.dead_head": "stands still", "data.num_workers": 3}
    costly = {"val_loss": 0.3, "val_accuracy": 0.8, "usd": 0.25}
    job = RunFolder(home / "cloud" / "job-1")
    finished(job, sent, {"origin": "sagemaker", "debugger.Overfit": "IssuesFound"}, costly, minutes=8)
    scored(job, photos)
    rehearsed = {"val_loss": 0.35, "val_accuracy": 0.78, "usd": 0.0}
    finished(RunFolder(home / "cloud" / "job-2"), sent, {"origin": "rehearsal"}, rehearsed, minutes=1)
    other = sent | {"data.fingerprint": "other"}
    finished(RunFolder(home / "cloud" / "elsewhere"), other, {"origin": "sagemaker"}, {"val_loss": 0.0}, minutes=1)
    failed = RunFolder(home / "cloud" / "failed")
    failed.start("failed", sent | {"data.fingerprint": "same"}, {"origin": "sagemaker"})
    failed.finish(Outcome("FAIL", reason="no"))
    return config


def finished(
    folder: RunFolder, params: dict[str, object], tags: dict[str, str], metrics: dict[str, float], *, minutes: int
) -> None:
    photos: dict[str, object] = {
        "data.classes": 2,
        "data.train_images": 24,
        "data.valid_images": 12,
        "data.test_images": 0,
    }
    photos |= {"data.fingerprint": "same", "data.bad_files": 1, "data.leaked_images": 3}
    folder.start(folder.path.name, {**photos, **params}, tags, started_ms=MINUTE)
    for epoch in (1, 2):
        folder.record(epoch, {"train_loss": 1 / epoch, "val_loss": metrics["val_loss"] + 2 - epoch})
    folder.finish(Outcome("COMPLETE", metrics["val_loss"], metrics), ended_ms=(1 + minutes) * MINUTE)


def scored(folder: RunFolder, photos: Path) -> None:
    """Two of three photos right; the wrong one is there, and so is one that is gone."""
    photo = next((photos / "valid" / "001.Class1").iterdir()).relative_to(photos)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.25, 0.75]])
    paths = (Path("valid/a.jpg"), photo, Path("valid/gone.jpg"))
    folder.artifacts.mkdir()
    write_tables(Scores(Path("/opt/ml"), paths, np.array([0, 0, 0]), np.log(probabilities), NAMES), folder.artifacts)


@pytest.fixture(scope="module")
def page(config: RunConfig) -> Page:
    return Page(report_studies([load_study(config, "tiny")], config))


def test_the_best_run_of_every_origin_comes_first_with_its_cost(page: Page) -> None:
    heading, home, rehearsed, cloud = page.table("The best run of every origin")
    assert heading[:8] == [
        "Origin",
        "Run",
        "val_loss",
        "val_accuracy",
        "test_accuracy",
        "Minutes",
        "Dollars",
        "Machine",
    ]
    assert home[:8] == ["at home", "tiny, trial 1", "0.4", "0.7 [0.421, 0.882]", "—", "2", "—", "home"]
    assert rehearsed[:7] == ["rehearsed job", "job-2", "0.35", "0.78 [0.497, 0.927]", "—", "1", "0.00"]
    assert cloud[:8] == ["SageMaker job", "job-1", "0.3", "0.8 [0.517, 0.937]", "—", "8", "0.25", "ml.g4dn.xlarge"]
    assert "optimizer.weight_decay" in heading
    assert page.facts()["Best run"] == "job-1"
    summary = next(
        paragraph.full_text() for paragraph in page.all("p") if paragraph.attributes.get("class") == "summary"
    )
    assert summary == (
        "Of 5 runs (3 at home, 1 rehearsed job, 1 SageMaker job) the best is job-1 (SageMaker job): 80.0% [51.7%, "
        "93.7%] of the validation photos named right, val_loss 0.3 in 8 min 0 s for $0.25. It is the best of 5 runs on "
        "12 photos: optimistic."
    )


def test_the_test_score_of_train_from_best_is_shown_with_the_trial(config: RunConfig, tmp_path: Path) -> None:
    study = load_study(config, "tiny")
    home = override(config, {"output_dir": tmp_path})
    for number in (0, 1):
        shutil.copytree(trial_folder(config, number).path, trial_folder(home, number).path)
    before = Page(report_studies([study], home, tmp_path / "before.html"))
    assert before.facts()["Its test_accuracy"] == "—"
    tags = {"origin": "local", "study": "tiny", "trial": "1"}
    again = {"val_loss": 0.4, "val_accuracy": 0.7, "test_accuracy": 0.65}
    finished(RunFolder(tmp_path / "train" / "two-000"), to_public(config), tags, again, minutes=3)
    page = Page(report_studies([study], home, tmp_path / "after.html"))
    assert page.facts()["Best run"] == "tiny, trial 1"
    assert page.facts()["Its test_accuracy"] == "0.65 (train --from-best)"
    assert page.table("The best run of every origin")[1][4] == "0.65 (train --from-best)"


def test_the_minutes_of_a_trial_include_what_was_opened_once_for_all(config: RunConfig) -> None:
    study = optuna.create_study(study_name="tiny")
    study.set_user_attr("metric", "val_loss")
    study.add_trials(load_study(config, "tiny").get_trials())
    assert [run.minutes for run in runs_of_study(study, config)] == [2, 2]
    study.set_user_attr(INPUTS_SECONDS, 90.0)
    assert [run.minutes for run in runs_of_study(study, config)] == [3.5, 3.5]


def test_a_trial_is_interrupted_if_nobody_trains_it(config: RunConfig, tmp_path: Path) -> None:
    home = override(config, {"output_dir": tmp_path})
    study = optuna.create_study(study_name="tiny", storage=open_storage(home))
    study.set_user_attr("metric", "val_loss")
    study.set_user_attr("config", to_public(home))
    study.ask()
    lock = FileLock(trial_folder(home, 0).path / "lock", is_singleton=False)
    trial_folder(home, 0).path.mkdir(parents=True)
    with lock:
        page = Page(report_studies([study], home))
    assert page.table("A row for each trial")[1][1] == "running"
    assert page.facts()["Running trials"] == "1"
    page = Page(report_studies([study], home))
    assert page.table("A row for each trial")[1][1] == "interrupted"
    assert page.facts()["Interrupted trials"] == "1" and "Running trials" not in page.facts()
    assert page.table("Timeline")[1][1] == "interrupted"


def test_accuracy_is_plotted_against_minutes_and_dollars_with_a_marker_per_origin(page: Page) -> None:
    for title, costs in (
        ("Accuracy against minutes", [2, 2, 3, 1, 8]),
        ("Accuracy against dollars", [0, 0, 0, 0, 0.25]),
    ):
        figure = page.plots()[title]
        assert sorted(x for trace in figure["data"] for x in trace["x"]) == sorted(costs)
        assert len({trace["marker"]["symbol"] for trace in figure["data"]}) == 3
        rows = page.table(f"{title}: the numbers")[1:]
        assert [row[0] for row in rows][-1] == "job-1"
    assert [row[3] for row in page.table("Accuracy against minutes")[1:]] == ["1", "2", "2", "3", "8"]


def test_the_learning_curves_of_the_best_runs_lie_over_one_another(page: Page) -> None:
    figure = page.plots()["Loss by epoch"]
    assert [(trace["name"], trace["x"]) for trace in figure["data"]][:2] == [
        ("val_loss, at home", [1, 2]),
        ("train_loss, at home", [1, 2]),
    ]
    assert page.table("Loss by epoch")[1] == ["tiny, trial 1", "val_loss", "1.4", "0.4"]


def test_errors_of_the_best_run_are_counted_and_shown(page: Page) -> None:
    assert page.table("Confusion matrix")[1:] == [["cat & dog", "1", "2"], ["hound", "0", "0"]]
    assert page.table("Accuracy of each class")[1:] == [["cat & dog", "3", "0.3333", "[0.061, 0.792]"]]
    first, second = page.table("Worst errors")[1:]
    assert first[1:4] == ["cat & dog", "hound", "0.8000"]
    assert second[0] == "valid/gone.jpg"
    (picture,) = page.all("img")
    assert picture.attributes["alt"] == f"Photo {first[0]}: cat & dog (0.2), taken for hound (0.8)"
    with Image.open(io.BytesIO(b64decode((picture.attributes["src"] or "").split(",")[1]))) as opened:
        assert opened.size == (160, 160)
    assert "1 of these photos are not on this machine" in page.all("main")[0].full_text()


def test_class_names_are_text_in_plots_which_read_html() -> None:
    rows = [["true class", "<b>bold</b>", "cat & dog"], ["<b>bold</b>", "1", "0"], ["cat & dog", "0", "2"]]
    per_class = [["class", "images", "accuracy"], ["<b>bold</b>", "1", "1"], ["cat & dog", "2", "1"]]
    for plot in (_confusion_plot(rows, "test"), _class_plot(per_class, "test")):
        figure = json.loads(plot.figure_json)
        assert figure["layout"]["yaxis"]["ticktext"] == ["&lt;b&gt;bold&lt;/b&gt;", "cat &amp; dog"]
        assert "<b>" not in json.dumps(figure["data"])


def test_findings_of_rules_are_printed(page: Page) -> None:
    rows = page.table("A row for each finding")[1:]
    assert ["job-1", "rule.dead_head", "stands still"] in rows
    assert ["job-1", "debugger.Overfit", "IssuesFound"] in rows


def test_the_commands_make_the_best_run_again(config: RunConfig, page: Page) -> None:
    home, cloud = [code.text for code in page.all("code") if "--seed" in code.text or "--data.root" in code.text]
    assert home.startswith("python -m experiments train ")
    assert cloud.startswith("python -m sagemaker_launch train ")
    assert cloud.endswith(" --cloud mine.yaml")
    photos_name = config.tracking.experiment
    again = load_config(None, parse_overrides(shlex.split(home)[4:]))
    wanted = override(config, {"optimizer.weight_decay": 0.25})
    differing = {name for name, value in to_flat(again).items() if value != to_flat(wanted)[name]}
    assert differing == {"sweep.study_name"}
    assert f"--tracking.experiment {photos_name}" in home and f"--tracking.experiment {photos_name}" in cloud


def test_a_run_at_home_keeps_its_own_photos_and_null_stays_null(config: RunConfig) -> None:
    (run,) = [run for run in other_runs(config, {"same"}) if run.name.startswith("one-000")]
    assert config_of(run, RunConfig()).data.root == config.data.root
    assert config_of(run, RunConfig()).seed == 7
    assert "--sweep" not in options_to_repeat(config_of(run, config), "train")


def test_without_the_scores_of_the_best_run_the_page_says_how_to_get_them(config: RunConfig, tmp_path: Path) -> None:
    study = load_study(config, "tiny")
    alone = override(config, {"output_dir": tmp_path})  # the trials ran elsewhere
    page = Page(report_studies([study], alone, tmp_path / "page.html"))
    text = page.all("main")[0].full_text()
    assert "The scores of tiny, trial 1 are not on this machine: train it here." in text
    assert page.table("The best run of every origin")[1][:4] == [
        "at home",
        "tiny, trial 1",
        "0.4",
        "0.7 [0.421, 0.882]",
    ]
    assert [run.folder for run in runs_of_study(study, alone)] == [None, None]


def test_the_page_of_all_origins_is_whole_and_loads_nothing(page: Page) -> None:
    for image in page.all("img"):
        assert (image.attributes["src"] or "").startswith("data:image/jpeg;base64,")
    identifiers = [section.attributes["id"] for section in page.all("section")]
    assert len(set(identifiers)) == len(identifiers)
    plots = page.plots()
    assert len(plots) >= 6
    for title in plots:
        assert len(page.table(f"{title}: the numbers")) > 1


def test_the_page_says_what_the_photos_are(config: RunConfig, page: Page, photos: Path) -> None:
    facts = dict(page.table("The photos")[1:])
    assert facts["Folder"] == str(photos)
    assert facts["Classes"] == "2: cat & dog, hound"
    assert [facts[name] for name in ("Training photos", "Validation photos", "Test photos")] == ["24", "12", "0"]
    assert (facts["Files left out"], facts["Photos in two splits"]) == ("1", "3")


def test_each_set_of_photos_has_a_best_run_of_its_own(config: RunConfig, tmp_path: Path) -> None:
    other = override(config, {"sweep.study_name": "other", "data.root": tmp_path / "shirts"})
    study = optuna.create_study(study_name="other", storage=open_storage(other))
    study.set_user_attr("config", to_public(other))
    trial = study.ask()
    params = {**to_public(other), "data.fingerprint": "third"}
    finished(trial_folder(other, 0), params, {}, {"val_loss": 0.01}, minutes=1)
    study.tell(trial, 0.01)
    page = Page(report_studies([load_study(config, "tiny"), study], config, tmp_path / "page.html"))
    header = page.all("header")[0].full_text()
    assert f"On {config.data.root.name if config.data.root else ''}: Of 5 runs" in header
    assert "On shirts: The one run is other, trial 0" in header
    assert "compared only with runs on the same photos" in header
    best = [value.full_text() for term, value in zip(page.all("dt"), page.all("dd"), strict=True) if is_best(term)]
    assert best == ["job-1", "other, trial 0"]
    assert "elsewhere" not in page.all("main")[0].full_text()
    identifiers = [section.attributes["id"] for section in page.all("section")]
    assert len(set(identifiers)) == len(identifiers)


def is_best(term: Element) -> bool:
    return term.full_text() == "Best run"


def test_a_trial_of_another_machine_belongs_to_the_photos_of_its_study(config: RunConfig, tmp_path: Path) -> None:
    elsewhere = override(config, {"output_dir": tmp_path})
    (first, _) = runs_of_study(load_study(config, "tiny"), elsewhere)
    assert (first.fingerprint, first.params["data.classes"]) == ("same", "2")
