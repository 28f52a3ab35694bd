"""No photo that a model is scored on was among its training photos: for `train`, trials, `evaluate` and jobs."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.config import RunConfig, load_config, override, to_public
from experiments.errors import EXIT_USAGE
from experiments.predict import evaluate_export
from experiments.runs.folder import RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.runs.scoring import Scores
from experiments.study.population_training import PopulationRun, train_population
from experiments.task import HeadTask
from experiments.train import score_and_export, train
from lightning_modules.folders import ClassFolders, scan_class_folders
from sagemaker_launch.container.entry import Job, run
from sagemaker_launch.container.hyperparameters import TUNING_OBJECTIVE, encode
from tests.conftest import tiny
from tests.pictures import make_class_folders

CONFIGURATIONS = 50
SPLITS = (
    {"train": 7, "test": 2},
    {"train": 9},
    {"train": 5, "valid": 2},
    {"train": 5, "valid": 3, "test": 2},
)


@dataclass(frozen=True)
class Place:
    """A data set, and a folder for the runs on it."""

    root: Path
    home: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Place]:
    """Data sets with and without folders valid and test; in each, some photos are there twice."""
    made, draw = [], random.Random(0)
    for seed, per_class in enumerate(SPLITS):
        home = tmp_path_factory.mktemp("leaks")
        root = make_class_folders(home / "photos", per_class=per_class, size=8, seed=seed)
        for number in range(3):
            photo = draw.choice(sorted((root / "train").rglob("*.jpg")))
            split = draw.choice(sorted(per_class))
            shutil.copy(photo, root / split / photo.parent.name / f"copy_{number}.jpg")
        made.append(Place(root, home))
    return made


@pytest.fixture(scope="module", params=range(CONFIGURATIONS))
def config(request: pytest.FixtureRequest, places: list[Place]) -> RunConfig:
    """A random configuration."""
    draw = random.Random(request.param)
    place = draw.choice(places)
    values = {
        "seed": draw.randrange(1000),
        "data.fraction": draw.choice([1.0, draw.uniform(0.2, 1.0)]),
        "data.valid_fraction": draw.uniform(0.1, 0.6),
        "data.image_size": 16,
        "model.trainable": "head",
        "trainer.max_epochs": 1,
        "output_dir": place.home / f"{request.param}",
    }
    return load_config(None, tiny(place.root, place.home) | values)


def rebuilt(config: RunConfig, noted: Mapping[str, object]) -> ClassFolders:
    """The splits that the recorded fields give.

    Args:
        noted: these fields, as numbers or text, without `data.`.
    """
    return scan_class_folders(
        config.data.own_root,
        seed=int(str(noted["seed"])),
        fraction=float(str(noted["fraction"])),
        valid_fraction=float(str(noted["valid_fraction"])),
        max_bad_fraction=0,
        cache_dir=config.data.cache_dir,
    )


def check_disjoint(config: RunConfig, noted: Mapping[str, object], scores: Scores) -> None:
    """No scored photo may be a training photo, and photos of the same content must be counted."""
    folders = rebuilt(config, noted)
    assert noted["fingerprint"] == folders.fingerprint
    training = {path.relative_to(folders.root) for path in folders.train.paths}
    assert len(scores.paths) > 0
    assert training.isdisjoint(scores.paths)
    splits = [split for split in (folders.train, folders.valid, folders.test) if split]
    in_splits = Counter(digest for split in splits for digest in set(split.hashes))
    assert int(str(noted["leaked_images"])) == sum(count - 1 for count in in_splits.values())


def without_section(params: Mapping[str, object]) -> dict[str, object]:
    return {name.removeprefix("data."): value for name, value in params.items()}


def test_train_trials_evaluate_and_jobs_score_no_training_photo(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trial = RunFolder(config.output_dir / "trial")
    trial.start("trial", to_public(config), {})
    list(train_population([PopulationRun(HeadTask(config), trial, lambda *_: False)], check=lambda: None))
    check_disjoint(config, without_section(trial.read().params), Scores.load(trial.scores))

    # One place trains each configuration alone: a run at home, whose model is evaluated, or a job.
    if config.seed % 2:
        job = Job(config.output_dir / "ml", "job", {**encode(config), TUNING_OBJECTIVE: "best_val_loss"}, 1)
        job.channel("photos").parent.mkdir(parents=True)
        job.channel("photos").symlink_to(config.data.own_root)
        run(job, scratch=config.output_dir / "scratch")
        noted = json.loads((job.base / "model" / "model.json").read_text())["data"]
        check_disjoint(config, noted, Scores.load(job.base / "output" / "data" / "scores.npz"))
        return
    folder = RunFolder(config.output_dir / "train")
    folder.start("train", to_public(config), {})
    result = train(config, output_dir=folder.path, logger=RunFolderLogger(folder))
    score_and_export(result, folder.export, folder.scores)
    noted = json.loads((folder.export / "model.json").read_text())["data"]
    check_disjoint(config, without_section(folder.read().params), result.validation)
    check_disjoint(config, noted, Scores.load(folder.scores))
    scored: list[Scores] = []
    monkeypatch.setattr("experiments.predict.draw_scores", lambda scores, _: scored.append(scores))
    typed = override(config, {"seed": config.seed + 1, "data.fraction": 0.5, "data.valid_fraction": 0.3})
    for split in ("valid", "test") if result.task.folders.test else ("valid",):
        evaluate_export(folder.export, typed, split)
        check_disjoint(config, noted, scored[-1])
    assert scored[0].paths == result.validation.paths
    assert "another data set" not in capfd.readouterr().err


@pytest.fixture
def export(places: list[Place], tmp_path: Path) -> tuple[RunConfig, Path]:
    """A model whose validation photos were cut from train."""
    values = {"trainer.max_epochs": 1, "model.trainable": "head", "data.image_size": 16}
    root = shutil.copytree(places[0].root, tmp_path / "photos")
    config = load_config(None, tiny(root, tmp_path) | values)
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    result = train(config, output_dir=folder.path, logger=RunFolderLogger(folder))
    score_and_export(result, folder.export, folder.scores)
    return config, folder.export


@pytest.mark.parametrize("way", ["older export", "photo added"])
def test_a_validation_split_that_can_not_be_cut_as_in_training_is_refused(
    export: tuple[RunConfig, Path], way: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = export
    root = config.data.own_root
    if way == "older export":
        manifest = json.loads((folder / "model.json").read_text())
        del manifest["data"]
        (folder / "model.json").write_text(json.dumps(manifest))
        why = "was divided in a way that model.json lacks"
    else:
        shutil.copy(next((root / "test").rglob("*.jpg")), next((root / "train").iterdir()) / "new.jpg")
        why = "has other photos than in training"
    monkeypatch.setattr("experiments.predict.draw_scores", lambda *_: None)
    command = ["evaluate", "--model", str(folder), "--data.name=folder", f"--data.root={root}"]
    command += [f"--data.cache_dir={config.data.cache_dir}", f"--output_dir={config.output_dir}"]
    assert main([*command, "--split=valid"]) == EXIT_USAGE
    refused = capsys.readouterr().err
    assert f"{root} has no folder valid, and its train folder {why}: take --split test" in refused
    assert main([*command, "--split=test"]) == 0
    said = capsys.readouterr()
    assert ("another data set" in said.err) == (way == "photo added")
    assert " [" in said.out, "accuracies have intervals"
    # A folder of validation photos needs no cut.
    (root / "test").rename(root / "valid")
    assert main([*command, "--split=valid", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    low, high = answer["intervals"]["val_accuracy"]
    assert 0 <= low <= answer["val_accuracy"] <= high <= 1


def test_fields_by_which_evaluate_would_cut_otherwise_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"seed": "1", "data.fraction": "0.5", "data.valid_fraction": "0.3"}.items():
        assert main(["evaluate", "--model", "export", f"--{name}={value}"]) == EXIT_USAGE
        assert f"{name} must be left out of `evaluate`" in capsys.readouterr().err
