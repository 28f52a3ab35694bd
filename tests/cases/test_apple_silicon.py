"""macOS and MPS, as far as they can be had elsewhere: without calls of Linux, and without float64 on the device."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from torch import Tensor, nn

from experiments.config import load_config
from experiments.data.inputs import new_network, open_data_once, photo_data
from experiments.runs import scoring
from experiments.runs.folder import RunFolder
from experiments.runs.logger import RunFolderLogger
from experiments.train import train
from lightning_modules.caches.features import Steps
from lightning_modules.classifier import ImageClassifier
from lightning_modules.heads.head import HeadClassifier
from lightning_modules.inference import Preprocessing
from tests.conftest import REPOSITORY, tiny
from tests.warm import WarmProcess
from tests.without_linux import SITE


class OnMps(Tensor):
    """A tensor on a device without float64: what is computed from it is there too, until it is copied to the CPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, OnMps) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return result


def on_mps(tensor: Tensor) -> Tensor:
    moved: Tensor = tensor.as_subclass(OnMps)
    return moved


def moved_batch(batch: Any) -> Any:
    return batch._replace(inputs=on_mps(batch.inputs)) if isinstance(batch, Steps) else (on_mps(batch[0]), batch[1])


def test_the_stand_in_for_mps_refuses_float64_and_lets_it_be_on_the_cpu() -> None:
    scores = nn.Linear(2, 3)(on_mps(torch.ones(1, 2)))
    with pytest.raises(TypeError, match="float64"):
        scores.double()
    with pytest.raises(TypeError, match="float64"):
        scores.sum().to(torch.float64)
    assert scores.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_training_and_scoring_need_no_float64_on_the_device(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainable: str
) -> None:
    for module_class in (ImageClassifier, HeadClassifier):
        for name in ("training_step", "validation_step"):
            step = getattr(module_class, name)
            monkeypatch.setattr(
                module_class, name, lambda self, batch, index, step=step: step(self, moved_batch(batch), index)
            )
    seen: list[Tensor] = []

    def moved(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            seen.append(on_mps(batch))
            yield seen[-1]

    predict = scoring.predict_log_probabilities
    monkeypatch.setattr(
        "experiments.train.predict_log_probabilities", lambda network, inputs: predict(network, moved(inputs))
    )
    config = load_config(None, tiny(photos, tmp_path) | {"trainer.max_epochs": 2, "model.trainable": trainable})
    folder = RunFolder(tmp_path / "run")
    folder.start("run", {}, {})
    result = train(config, output_dir=folder.path, logger=RunFolderLogger(folder))
    assert sorted(result.history) == [1, 2]
    assert result.validation.probabilities.dtype == "float64"
    assert seen
    data = photo_data(config, open_data_once(config))
    network = new_network(config, 3).eval()
    assert predict(network, moved(data.split_inputs(data.folders.valid, torch.device("cpu")))).dtype == "float64"


def test_photos_are_normalised_without_float64_on_the_device() -> None:
    preprocessing = Preprocessing(8, 8)
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    wanted = preprocessing.normalise(pixels)
    assert torch.equal(preprocessing.normalise(on_mps(pixels)).cpu(), wanted)


@pytest.mark.slow
def test_train_sweep_evaluate_and_serve_without_the_calls_of_linux(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    fields = tiny(photos, tmp_path / "runs") | {"trainer.max_epochs": 1, "sweep.n_trials": 2, "sweep.workers": 2}
    out, err = tmp_path / "out", tmp_path / "err"
    process = WarmProcess(
        "tests.without_linux",
        [f"{name}={value}" for name, value in fields.items()],
        folder=REPOSITORY,
        environment=os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        out=out,
        err=err,
    )
    try:
        until = time.monotonic() + 240
        while "http://" not in out.read_text():
            assert process.poll() is None and time.monotonic() < until, err.read_text()
            time.sleep(0.1)
        score, url = out.read_text().split()
        assert float(score) > 0
        [export] = (tmp_path / "runs" / "train").glob("*/export")
        photo = (export / "golden" / "image.jpg").read_bytes()
        answer = requests.post(f"{url}/invocations", photo, headers={"Content-Type": "image/jpeg"}, timeout=30)
        assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
    trials = [RunFolder(path.parent) for path in tmp_path.glob("runs/studies/tiny/trials/*/run.json")]
    assert [trial.outcome.state for trial in trials if trial.outcome] == ["COMPLETE", "COMPLETE"]
