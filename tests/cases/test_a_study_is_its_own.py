"""What one study found never shows under another study's name: other photos, another storage, other settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from experiments import sweep
from experiments.config import RunConfig, load_config, override, tracking_uri
from experiments.errors import InterruptedRunError, SweepError, UserError
from experiments.interrupts import Watch
from experiments.runs.folder import RunFolder
from experiments.single_run import run_path_prefix, train_and_register
from experiments.study import trials as study_trials
from experiments.study.storage import study_folder
from experiments.study.study import best_config, load_study, trial_folder
from experiments.sweep import run_sweep
from lightning_modules.inference import build_network, load_export
from tests.conftest import tiny
from tests.pictures import make_class_folders


@pytest.fixture
def home(tmp_path: Path, mlflow_database: Path) -> Path:
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_database, tmp_path / "runs")
    return tmp_path / "runs"


def config_for(root: Path, home: Path, **values: object) -> RunConfig:
    """What a person types: photos and a search space, and no name."""
    typed = {**tiny(root, home), "sweep.n_trials": 1, "trainer.max_epochs": 1}
    del typed["sweep.study_name"]
    return load_config(None, typed | {name.replace("__", "."): value for name, value in values.items()})


def make_photos(root: Path, classes: int) -> Path:
    make_class_folders(root, classes=classes, per_class={"train": 6, "valid": 3, "test": 3}, size=24, seed=classes)
    return root


@pytest.mark.filterwarnings("ignore:Operation with .* is deprecated")  # MLflow 3.17 on pandas 3
def test_two_data_sets_make_two_studies_two_experiments_and_two_models(home: Path, tmp_path: Path) -> None:
    for name, classes in (("dogs", 2), ("clothing", 3)):
        config = config_for(make_photos(tmp_path / name, classes), home)
        result = run_sweep(config)
        export = trial_folder(config, result.best.number).export
        assert len(load_export(export).class_names) == classes
        trained = train_and_register(config)
        assert (trained.model_uri, trained.champion) == (f"models:/{name}/1", True)
    assert sorted(path.name for path in (home / "studies").iterdir()) == ["clothing", "dogs"]
    client = MlflowClient(tracking_uri(config))
    assert {"dogs", "clothing"} <= {experiment.name for experiment in client.search_experiments()}
    for name in ("dogs", "clothing"):
        found = client.get_experiment_by_name(name)
        assert found is not None
        names = {run.info.run_name for run in client.search_runs([found.experiment_id])}
        assert names == {name, "trial 0000", "train folder"}


@pytest.mark.usefixtures("unpublished")
def test_photos_that_change_below_one_root_are_not_taken_for_the_old_ones(home: Path, tmp_path: Path) -> None:
    root = make_photos(tmp_path / "photos", 2)
    config = config_for(root, home)
    first = run_sweep(config).best.value
    added = root / "train" / "001.Class1" / "added.png"
    shutil.copy(next((root / "train" / "002.Class2").iterdir()), added)
    more = override(config, {"sweep.n_trials": 2})
    with pytest.raises(UserError, match=r"12 train, 6 valid and 6 test.*\n.*13 train, 6 valid and 6 test"):
        run_sweep(more)
    make_class_folders(root / "more", classes=3, per_class={"train": 2, "valid": 1}, size=24, seed=9)
    shutil.move(root / "more" / "train" / "003.Class3", root / "train")
    with pytest.raises(UserError, match=r"2 classes: Class1, Class2\n.*3 classes: Class1, Class2, Class3"):
        run_sweep(more)
    assert load_study(config, "photos").best_value == first
    assert len(run_sweep(override(more, {"sweep.study_name": "photos-2"})).study.trials) == 2
    shutil.rmtree(root / "train" / "003.Class3")
    added.unlink()
    moved = tmp_path / "elsewhere" / "photos"
    shutil.copytree(root, moved)
    assert len(run_sweep(config_for(moved, home, sweep__n_trials=2)).study.trials) == 2


def write_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_file(build_network("shufflenet_v2_x0_5", 2).state_dict(), path)


@pytest.mark.usefixtures("unpublished")
def test_weights_that_change_below_one_path_are_not_taken_for_the_old_ones(
    home: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the export has the new backbone and the head that was trained on the old one's features."""
    weights, kept = tmp_path / "last.safetensors", tmp_path / "kept.safetensors"
    write_weights(weights, 1)
    shutil.copy(weights, kept)
    config = config_for(photos, home, model__weights=str(weights), sweep__study_name="own")
    with monkeypatch.context() as patched:  # killed before the export
        patched.setattr(sweep, "_export", lambda *_: (_ for _ in ()).throw(InterruptedRunError))
        with pytest.raises(InterruptedRunError):
            run_sweep(config)
    write_weights(weights, 2)
    for changed in (config, override(config, {"sweep.n_trials": 2})):
        with pytest.raises(
            UserError, match=r"model\.weights must be the file that .*last\.safetensors has other content"
        ):
            run_sweep(changed)
    assert len(run_sweep(override(config, {"sweep.study_name": "other"})).study.trials) == 1
    shutil.copy(kept, weights)
    assert trial_folder(config, run_sweep(config).best.number).export.is_dir()
    # A training takes another folder.
    before = run_path_prefix(config)
    write_weights(weights, 2)
    assert run_path_prefix(config) != before


@pytest.mark.usefixtures("unpublished")
def test_a_study_of_another_program_is_left_as_it_is(home: Path, photos: Path, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/shared.db"
    theirs = optuna.create_study(study_name="own", storage=storage)
    theirs.optimize(lambda trial: trial.suggest_float("lr", 0, 1), n_trials=2)
    config = config_for(photos, home, sweep__study_name="own", sweep__storage=storage)
    with pytest.raises(UserError, match=r"sweep\.study_name must name a study of this program, got 'own'"):
        run_sweep(config)
    with pytest.raises(UserError, match=r"study must be one of this program, got 'own'"):
        best_config(load_study(config, "own"), config)
    assert theirs.user_attrs == {} and len(theirs.trials) == 2
    assert len(run_sweep(override(config, {"sweep.study_name": "ours"})).study.trials) == 1


@pytest.mark.usefixtures("unpublished")
def test_a_new_storage_continues_the_study_or_is_refused_but_never_shows_old_values(
    home: Path, tmp_path: Path, photos: Path
) -> None:
    config = config_for(photos, home, sweep__study_name="own")
    first = run_sweep(config)
    database = {"sweep.storage": f"sqlite:///{tmp_path}/study.db"}
    with pytest.raises(UserError, match=r"trainer\.max_epochs must stay 1 for study 'own'"):
        run_sweep(override(config, {**database, "seed": 5, "trainer.max_epochs": 2}))
    moved = run_sweep(override(config, {**database, "sweep.n_trials": 2}))
    assert [trial.value for trial in moved.study.trials][:1] == [first.best.value]
    assert len(moved.study.trials) == 2
    # Somebody deletes the journal: the same points are drawn, and their folders hold their results.
    (study_folder(config) / "journal.log").unlink()
    again = run_sweep(config)
    assert (again.best.params, again.best.value) == (first.best.params, first.best.value)
    moved.study._storage.remove_session()


@pytest.mark.usefixtures("unpublished")
def test_a_trial_folder_of_other_parameters_is_never_taken_for_this_trial(home: Path, photos: Path) -> None:
    config = config_for(photos, home, sweep__study_name="own")
    run_sweep(config)
    (study_folder(config) / "journal.log").unlink()
    folder = trial_folder(config, 0)
    folder.add_params({"optimizer.learning_rate": "0.5"})  # drawn by another sampler
    with pytest.raises(UserError, match=r"learning_rate is 0\.5 there and .* here.*move that folder away"):
        run_sweep(config)
    shutil.move(folder.path, home / "aside")
    assert run_sweep(config).best.number == 0


@pytest.mark.usefixtures("unpublished")
def test_a_mistake_that_no_check_finds_locks_nothing(home: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All trials fail for a reason in the settings; the corrected settings work under the same name."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    config = config_for(photos, home, sweep__study_name="own", sweep__max_failures=0)
    with monkeypatch.context() as patched:
        patched.setattr(study_trials, "train", fail)
        with pytest.raises(SweepError, match=r"trials keep failing: 1.*no kernel image"):
            run_sweep(config)
    result = run_sweep(
        override(config, {"model.dropout": 0.1, "sweep.metric": "val_accuracy", "sweep.direction": "maximize"})
    )
    assert result.study.direction.name == "MAXIMIZE"
    assert [trial.state.name for trial in result.study.trials] == ["COMPLETE"]


@pytest.mark.filterwarnings("ignore:Operation with .* is deprecated")  # MLflow 3.17 on pandas 3
def test_an_interrupted_training_is_not_continued_on_other_photos(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_photos(tmp_path / "photos", 2)
    config = config_for(root, home, trainer__max_epochs=2)

    def stop(self: Watch, trainer: Any, *_: object) -> None:
        if trainer.current_epoch == 1:
            raise InterruptedRunError

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "on_train_batch_end", stop)
        with pytest.raises(InterruptedRunError, match="best model so far: epoch 1"):
            train_and_register(config)
    [cut_off] = (home / "train").iterdir()
    added = root / "train" / "001.Class1" / "added.png"
    shutil.copy(next((root / "train" / "002.Class2").iterdir()), added)
    on_more = train_and_register(config).export.parent
    assert on_more != cut_off, "a new run, as the photos are others"
    assert RunFolder(on_more).read().params["data.train_images"] == "13"
    added.unlink()
    assert train_and_register(config).export.parent == cut_off, "the old photos: the old run continues"
    assert len(list((home / "train").iterdir())) == 2
