"""The recorder in real trainings: what it sees is what happened, broken ones trip their rule, healthy ones none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from experiments.callbacks.history import NotANumberError
from experiments.config import RunConfig, load_config, override
from experiments.data.inputs import forget_opened
from experiments.figures.pictures import draw
from experiments.runs.folder import RECORDING, Outcome, RunFolder
from experiments.sweep import run_sweep
from experiments.train import train
from lightning_modules.insight import recorder
from lightning_modules.insight.recording import Recording, load_findings
from tests.conftest import tiny
from tests.integration.test_train import MemoryLogger, StopAfterEpoch, run, timeless
from tests.pictures import make_class_folders
from tests.unit.lightning_modules.insight.test_rules import replay


@pytest.fixture(scope="session")
def more_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many that an epoch has 25 steps."""
    root = tmp_path_factory.mktemp("more_photos")
    make_class_folders(root, classes=2, per_class={"train": 50, "valid": 8, "test": 4}, size=16, seed=0)
    return root


@pytest.fixture
def config(more_photos: Path, tmp_path: Path) -> RunConfig:
    """A whole tiny network, which learns what the pictures are."""
    forget_opened()
    values = {"data.batch_size": 4, "model.trainable": "all", "optimizer.learning_rate": 0.001}
    return load_config(None, {**tiny(more_photos, tmp_path), **values, "trainer.record": "full"})


class Watcher(Callback):
    """Notes what really happens in each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: dict[int, list[float]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = list(pl_module.network.parameters())
        self.norms[trainer.global_step] = [float(parameter.grad.norm()) for parameter in parameters]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))


class Zeroed(Callback):
    """Keeps the head at zero."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        with torch.no_grad():
            for parameter in pl_module.network.fc.parameters():
                parameter.zero_()


def recorded(folder: Path) -> Recording:
    return Recording.load(folder / RECORDING)


def test_what_is_recorded_is_what_happened_and_changes_nothing(config: RunConfig, tmp_path: Path) -> None:
    watcher = Watcher()
    with_recorder = run(config, tmp_path / "with", watcher)
    without = run(override(config, {"trainer.record": "none"}), tmp_path / "without")
    assert timeless(with_recorder) == timeless(without)
    assert not (tmp_path / "without" / RECORDING).exists()
    recording = recorded(tmp_path / "with")
    assert recording.train_steps == list(range(75))
    assert recording.train_losses == pytest.approx(watcher.losses)
    assert [sample.step for sample in recording.samples] == [0, 1, 5, 10, 20, 30, 40, 50, 60, 70]
    for sample in recording.samples:
        assert sample.gradient_norm.tolist() == pytest.approx(watcher.norms[sample.step], rel=1e-4)
        assert sample.loss == pytest.approx(watcher.losses[sample.step])
        assert len(sample.dead_share) == len(recording.activations)
    validation = recording.validations()
    assert list(validation) == [24, 49, 74]
    assert list(validation.values()) == pytest.approx(
        [metrics["val_loss"] for metrics in without.history.values()], rel=1e-5
    )
    assert load_findings(tmp_path / "with" / RECORDING) == []
    assert replay(recording) == []


def test_light_looks_less_often_and_at_less(config: RunConfig, tmp_path: Path) -> None:
    run(config, tmp_path / "full")
    run(override(config, {"trainer.record": "light"}), tmp_path / "light")
    full, light = recorded(tmp_path / "full"), recorded(tmp_path / "light")
    assert [sample.step for sample in light.samples] == [0, 1, 5, 20, 50]
    assert light.train_losses == full.train_losses
    assert set(light.activations) < set(full.activations) and "fc" in light.activations


def test_a_head_on_cached_features_is_recorded_too(config: RunConfig, tmp_path: Path) -> None:
    run(override(config, {"model.trainable": "head", "trainer.max_epochs": 1}), tmp_path)
    recording = recorded(tmp_path)
    assert (recording.parameters, recording.activations) == (["weight", "bias"], ["head"])


@pytest.mark.parametrize(
    ("values", "broken", "rules"),
    [
        ({"optimizer.learning_rate": 1e3}, [], {"learning_rate"}),
        ({"optimizer.learning_rate": 1e-9}, [], {"learning_rate"}),
        ({}, [Zeroed()], {"dead_head", "vanishing_gradient"}),
    ],
)
def test_a_broken_training_breaks_its_rule_and_says_so(
    config: RunConfig, tmp_path: Path, values: dict[str, object], broken: list[Callback], rules: set[str]
) -> None:
    logger = MemoryLogger()
    config = override(config, {**values, "trainer.on_rule": "stop"})
    try:
        result = train(config, output_dir=tmp_path, logger=logger, callbacks=broken)
        assert len(result.history) == 1  # it was stopped within the first epoch or after it
    except NotANumberError:
        assert values == {"optimizer.learning_rate": 1e3}
    found = {finding.rule for finding in load_findings(tmp_path / RECORDING)}
    assert found & rules and found <= rules | {"loss_not_decreasing", "vanishing_gradient", "exploding_gradient"}
    assert {name for name in logger.facts if name.startswith("rule.")} == {f"rule.{rule}" for rule in found}


def test_shuffled_labels_overfit_or_teach_nothing(config: RunConfig, tmp_path: Path, more_photos: Path) -> None:
    shuffled = tmp_path / "shuffled"
    make_class_folders(shuffled, classes=2, per_class={"train": 50, "valid": 8, "test": 4}, size=16, seed=0)
    first, second = sorted((shuffled / "train").iterdir())
    for first_photo, second_photo in list(zip(sorted(first.iterdir()), sorted(second.iterdir()), strict=True))[::2]:
        kept = first_photo.read_bytes()
        first_photo.write_bytes(second_photo.read_bytes())
        second_photo.write_bytes(kept)
    values = {"data.root": shuffled, "trainer.max_epochs": 8, "optimizer.schedule": "constant"}
    run(override(config, values), tmp_path / "run")
    found = {finding.rule for finding in load_findings(tmp_path / "run" / RECORDING)}
    assert found & {"overfitting", "loss_not_decreasing"}


@pytest.mark.parametrize("spoilt", [7, 10], ids=["between samples", "in a sampled step"])
def test_a_loss_that_is_no_number_ends_the_run_at_once_and_names_the_layer(
    config: RunConfig, tmp_path: Path, spoilt: int
) -> None:
    class Spoil(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == spoilt:
                with torch.no_grad():
                    pl_module.network.get_submodule("stage3.0.branch1.2").weight.fill_(float("inf"))

    with pytest.raises(NotANumberError, match=rf"at step {spoilt}, first in the weights of stage3\.0\.branch1\.2"):
        run(override(config, {"trainer.on_rule": "stop"}), tmp_path, Spoil())
    assert [finding.rule for finding in load_findings(tmp_path / RECORDING)] == ["not_finite"]
    assert math.isnan(recorded(tmp_path).train_losses[spoilt])


def test_a_resumed_run_records_no_step_twice(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "SAVE_SECONDS", 0.0)  # so that it holds more than the checkpoint
    run(config, tmp_path / "whole")
    with pytest.raises(ConnectionAbortedError):
        run(config, tmp_path / "killed", StopAfterEpoch(1))
    assert len(recorded(tmp_path / "killed").train_steps) == 25

    class NeverStarts(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            raise ConnectionAbortedError("killed")

    with pytest.raises(ConnectionAbortedError):
        run(config, tmp_path / "killed", NeverStarts())
    run(config, tmp_path / "killed")
    whole, killed = recorded(tmp_path / "whole"), recorded(tmp_path / "killed")
    assert killed.train_steps == whole.train_steps and killed.train_losses == whole.train_losses
    assert killed.validation_steps == whole.validation_steps
    assert [sample.step for sample in killed.samples] == [sample.step for sample in whole.samples]


def test_a_compiled_network_is_recorded_and_stays_compiled(config: RunConfig, tmp_path: Path) -> None:
    calls: list[int] = []

    class Compiled(Callback):
        """Stands where torch.compile puts its own call."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            def call(*arguments: Any) -> Any:
                calls.append(trainer.global_step)
                return pl_module.network._call_impl(*arguments)

            pl_module.network._compiled_call_impl = call

    run(override(config, {"trainer.max_epochs": 1}), tmp_path, Compiled())
    assert len(recorded(tmp_path).samples[0].activation_mean) > 20
    trained = {step for step in calls if step < 25}
    assert trained == set(range(25)) - {0, 1, 5, 10, 20}


@pytest.mark.slow
def test_a_sweep_draws_each_recording_and_a_stopped_trial_says_why(config: RunConfig, tmp_path: Path) -> None:
    search = tmp_path / "search.yaml"
    search.write_text("optimizer.learning_rate: {type: choice, values: [1.0e+3, 3.0e-3]}\n")
    values = {"search": search, "sweep.sampler": "grid", "sweep.n_trials": 2, "trainer.on_rule": "stop"}
    result = run_sweep(override(config, values))
    assert len(result.study.trials) == 2
    for number in range(2):
        folder = RunFolder(result.folder / "trials" / f"{number:04d}")
        assert (folder.artifacts / "recording.png").read_bytes().startswith(b"\x89PNG")
        params = folder.read().params
        assert ("rule.learning_rate" in params) == (float(params["optimizer.learning_rate"]) == 1e3)


def test_a_run_that_failed_has_a_picture_of_its_recording(config: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    with pytest.raises(ConnectionAbortedError):
        run(config, folder.path, StopAfterEpoch(1))
    folder.finish(Outcome("FAIL", reason="killed"))
    assert folder.needs_drawing
    draw(folder)
    assert not folder.needs_drawing
    assert json.loads((folder.recording / "findings.json").read_text()) == []
