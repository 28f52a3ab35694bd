"""The classifier: what is frozen stays frozen, what is logged is true."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules.classifier import ImageClassifier, learning_rate_factor
from lightning_modules.inference import build_network
from lightning_modules.network import Trainable, create_network, find_head, trainable_modules


def batches(count: int = 20, batch_size: int = 8) -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 3
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def fit(model: ImageClassifier, loader: DataLoader[tuple[torch.Tensor, ...]], epochs: int = 2) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, loader, loader)
    return trainer


def classifier(trainable: Trainable, **options: float) -> ImageClassifier:
    torch.manual_seed(0)
    network = create_network("resnet18", 3, weights="none")
    return ImageClassifier(network, num_classes=3, trainable=trainable, learning_rate=0.1, optimizer="sgd", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_frozen_weights_and_batchnorm_statistics_do_not_drift(trainable: Trainable) -> None:
    model = classifier(trainable)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    fit(model, batches())
    moved = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
    may_move = ("fc.",) if trainable == "head" else ("fc.", "layer4.")
    assert moved
    assert all(name.startswith(may_move) for name in moved)
    assert ("layer4.0.bn1.running_mean" in moved) == (trainable == "last_block")


def test_a_checkpoint_holds_what_training_changes_and_restores_the_outputs() -> None:
    model = classifier("last_block")
    trainer = fit(model, batches())
    state = dict(trainer._checkpoint_connector.dump_checkpoint()["state_dict"])
    assert state
    assert all(name.startswith(("network.layer4", "network.fc")) for name in state)
    other = classifier("last_block")
    other.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.eval()(image), model.eval()(image))


def test_norms_and_biases_are_not_decayed_and_the_backbone_steps_smaller() -> None:
    model = classifier("all", weight_decay=0.05, backbone_learning_rate_scale=0.1)
    groups = {group["name"]: group for group in model._parameter_groups()}
    assert groups["head"]["lr"] == 0.1
    assert groups["backbone"]["lr"] == pytest.approx(0.01)
    for name, group in groups.items():
        assert group["weight_decay"] == (0.0 if "norms" in name else 0.05)
        assert all((one.ndim == 1) == ("norms" in name) for one in group["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.network.parameters()))


def test_val_loss_is_the_plain_mean_over_the_split() -> None:
    model = classifier("head", label_smoothing=0.3)
    loader = batches(count=20, batch_size=8)  # the last batch has 4
    trainer = fit(model, loader, epochs=1)
    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model.eval()(images), labels)
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_loss_that_is_no_number_is_reported_as_such() -> None:
    model = classifier("head")
    with torch.no_grad():
        model.network.fc.weight.fill_(math.nan)  # type: ignore[union-attr, operator]
    trainer = fit(model, batches(), epochs=1)
    assert math.isnan(float(trainer.callback_metrics["val_loss"]))


def test_one_cycle_is_the_schedule_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=50, cycle_momentum=False)
    for step in range(50):
        own = learning_rate_factor(step, 50, schedule="one_cycle", warmup_steps=0)
        assert own == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_warmup_is_linear_and_cosine_ends_at_nothing() -> None:
    factors = [learning_rate_factor(step, 20, schedule="cosine", warmup_steps=4) for step in range(20)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 <= factors[-1] < 0.02
    assert learning_rate_factor(19, 20, schedule="constant", warmup_steps=4) == 1.0


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "vgg11",
        "densenet121",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "vit_b_16",
        "swin_t",
        "convnext_tiny",
        "squeezenet1_0",
        "googlenet",
        "shufflenet_v2_x0_5",
    ],
)
def test_the_last_block_is_a_part_of_the_trunk_and_the_head(backbone: str) -> None:
    with torch.device("meta"):
        network = build_network(backbone, 7)
    head = network.get_submodule(find_head(network))
    assert 7 in (getattr(head, "out_features", 0), getattr(head, "out_channels", 0))
    parts = trainable_modules(network, "last_block")
    trained = {id(one) for part in parts for one in part.parameters()}
    assert {id(one) for one in head.parameters()} < trained
    assert len(trained) < len(list(network.parameters()))


def test_weights_of_half_precision_are_upcast_and_another_head_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    donor = build_network("resnet18", 5)
    save_file({name: value.half() for name, value in donor.state_dict().items()}, tmp_path / "w.safetensors")
    network = create_network("resnet18", 3, weights=str(tmp_path / "w.safetensors"))
    assert "its head has 5 classes, not 3" in caplog.text
    assert network.conv1.weight.dtype == torch.float32  # type: ignore[union-attr]
    assert torch.allclose(network.conv1.weight, donor.conv1.weight, atol=1e-3)  # type: ignore[arg-type, union-attr]
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    same = create_network("resnet18", 5, weights=str(tmp_path / "w.pth"))
    assert torch.equal(same.fc.weight, donor.fc.weight)  # type: ignore[arg-type, union-attr]


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(build_network("shufflenet_v2_x0_5", 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is of another network"):
        create_network("resnet18", 3, weights=str(tmp_path / "other.pth"))
    with pytest.raises(FileNotFoundError, match=r"model\.weights must be imagenet, none or an existing file"):
        create_network("resnet18", 3, weights=str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"model\.backbone must be a torchvision classifier, got 'resnet5'"):
        create_network("resnet5", 3, weights="none")


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"fc.weight": Planted(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="can't be read as a state dict"):
        create_network("resnet18", 3, weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_imagenet_weights_without_a_network_name_the_file_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"resnet18-.*\.pth can't be downloaded.*place that file at .*checkpoints"
    ):
        create_network("resnet18", 3, weights="imagenet")


def test_dropout_keeps_the_names_of_the_parameters() -> None:
    plain = create_network("resnet18", 3, weights="none")
    dropped = create_network("resnet18", 3, weights="none", dropout=0.5)
    assert list(plain.state_dict()) == list(dropped.state_dict())
    dropped.train()
    assert not torch.equal(dropped.fc(torch.ones(1, 512)), dropped.fc(torch.ones(1, 512)))  # type: ignore[operator]
