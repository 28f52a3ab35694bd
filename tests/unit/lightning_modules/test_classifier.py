"""The classifier: what is frozen stays frozen, what is logged is true, and the course of the step size."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import get_args

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import metrics
from lightning_modules.classifier import EPOCH_SO_FAR, ImageClassifier, Schedule, learning_rate_factor
from lightning_modules.data import IGNORED_LABEL
from lightning_modules.network import Trainable, create_network, network_on_meta

LABELS = [0, 1, 2] * 6 + [0, 1]


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def loader(labels: list[int], batch_size: int = 4) -> DataLoader[tuple[Tensor, ...]]:
    images = torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=batch_size)


def images_and_labels(batches: DataLoader[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    dataset = batches.dataset
    assert isinstance(dataset, TensorDataset)
    images, labels = dataset.tensors
    return images, labels


def fit(
    model: ImageClassifier,
    train: DataLoader[tuple[Tensor, ...]],
    valid: DataLoader[tuple[Tensor, ...]],
    epochs: int = 1,
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(model, train, valid)
    return trainer


def metric(trainer: pl.Trainer, name: str) -> float:
    return float(trainer.callback_metrics[name])


def eval_loss(model: ImageClassifier, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images), labels))


def classifier(trainable: Trainable, **options: float) -> ImageClassifier:
    torch.manual_seed(0)
    network = create_network("resnet18", 3, weights="none")
    return ImageClassifier(network, num_classes=3, trainable=trainable, learning_rate=0.1, optimizer="sgd", **options)


# What trains


@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_frozen_weights_and_batchnorm_statistics_do_not_drift(trainable: Trainable) -> None:
    model = classifier(trainable)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    fit(model, loader(LABELS, 8), loader(LABELS, 8), epochs=2)
    moved = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
    may_move = ("fc.",) if trainable == "head" else ("fc.", "layer4.")
    assert moved
    assert all(name.startswith(may_move) for name in moved)
    assert ("layer4.0.bn1.running_mean" in moved) == (trainable == "last_block")


def test_a_checkpoint_holds_what_training_changes_and_restores_the_outputs() -> None:
    model = classifier("last_block")
    trainer = fit(model, loader(LABELS, 8), loader(LABELS, 8), epochs=2)
    state = dict(trainer._checkpoint_connector.dump_checkpoint()["state_dict"])
    assert state
    assert all(name.startswith(("network.layer4", "network.fc")) for name in state)
    other = classifier("last_block")
    other.load_state_dict(state, strict=False)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.eval()(image), model.eval()(image))


def test_each_device_resumes_with_its_own_sums_of_an_epoch() -> None:
    """As a checkpoint of two devices within an epoch keeps them."""
    models = [classifier("head"), classifier("head")]
    for rank, model in enumerate(models):
        model.train_loss.update(torch.tensor(4.0 + rank), 4)
        model.train_accuracy.update(torch.tensor(3 - rank), 4)
    states = [[metric.metric_state for metric in (model.train_loss, model.train_accuracy)] for model in models]
    gathered = [
        {name: torch.stack([first[name], other[name]]) for name in first} for first, other in zip(*states, strict=True)
    ]
    for rank, model in enumerate(models):
        resumed = classifier("head")
        resumed._trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
        resumed.on_load_checkpoint({EPOCH_SO_FAR: {"metrics": gathered, "images": 4, "seconds": 1.0}})
        for module in (resumed, model):
            module.train_loss.update(torch.tensor(0.5), 2)
            module.train_accuracy.update(torch.tensor(1), 2)
        assert torch.equal(resumed.train_loss.compute(), model.train_loss.compute())
        assert torch.equal(resumed.train_accuracy.compute(), model.train_accuracy.compute())


def test_norms_and_biases_are_not_decayed_and_the_backbone_steps_smaller() -> None:
    model = classifier("all", weight_decay=0.05, backbone_learning_rate_scale=0.1)
    groups = {group["name"]: group for group in model._parameter_groups()}
    assert groups["head"]["lr"] == 0.1
    assert groups["backbone"]["lr"] == pytest.approx(0.01)
    for name, group in groups.items():
        assert group["weight_decay"] == (0.0 if "norms" in name else 0.05)
        assert all((parameter.ndim == 1) == ("norms" in name) for parameter in group["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.network.parameters()))


@pytest.mark.parametrize(
    ("backbone", "exempt"),
    [
        ("convnext_tiny", {"layer_scale"}),
        ("vit_b_32", {"class_token", "pos_embedding"}),
        ("swin_t", {"relative_position_bias_table"}),
        ("swin_v2_t", {"logit_scale"}),
        ("maxvit_t", {"relative_position_bias_table"}),
    ],
)
def test_scales_and_positions_are_not_decayed(backbone: str, exempt: set[str]) -> None:
    """Whatever else has two dimensions belongs to a layer that multiplies its input with it."""
    model = ImageClassifier(network_on_meta(backbone), num_classes=2, trainable="all", weight_decay=0.05)
    plain = {
        id(parameter)
        for group in model._parameter_groups()
        if not group["weight_decay"]
        for parameter in group["params"]
    }
    spared = {
        name.rpartition(".")[2]
        for name, parameter in model.network.named_parameters()
        if parameter.ndim > 1 and id(parameter) in plain
    }
    assert spared == exempt
    decayed = {
        name.rpartition(".")[2] for name, parameter in model.network.named_parameters() if id(parameter) not in plain
    }
    assert decayed <= {"weight", "in_proj_weight"}


# Metrics


def test_padded_labels_do_not_count_in_validation() -> None:
    model = ImageClassifier(small_network(), num_classes=3)
    labels = [0, 1, 2, IGNORED_LABEL, 1, IGNORED_LABEL, IGNORED_LABEL, IGNORED_LABEL, *[IGNORED_LABEL] * 3]
    valid = loader(labels)  # the last batch is padding and nothing else
    trainer = fit(model, loader([0, 1, 2, 0]), valid)
    images, wanted = images_and_labels(valid)
    counted = wanted != IGNORED_LABEL
    assert metric(trainer, metrics.VAL_LOSS) == pytest.approx(
        eval_loss(model, images[counted], wanted[counted]), rel=1e-5
    )
    right = (model(images[counted]).argmax(1) == wanted[counted]).float().mean()
    assert metric(trainer, metrics.VAL_ACCURACY) == pytest.approx(float(right))


@pytest.mark.parametrize("where", ["train", "valid"])
def test_one_image_that_is_no_number_shows_in_the_loss(where: str) -> None:
    train, valid = loader([0, 1, 2] * 3), loader([0, 1, 2] * 3)
    images_and_labels(train if where == "train" else valid)[0][5] = math.nan
    trainer = fit(ImageClassifier(small_network(), num_classes=3), train, valid)
    assert math.isnan(metric(trainer, metrics.TRAIN_LOSS if where == "train" else metrics.VAL_LOSS))


def test_metrics_are_reset_in_each_epoch() -> None:
    model = ImageClassifier(small_network(), num_classes=3, learning_rate=0.5, optimizer="sgd")
    valid = loader([0, 1, 2] * 3)
    trainer = fit(model, loader([0, 1, 2] * 4), valid, epochs=4)
    assert metric(trainer, metrics.VAL_LOSS) == pytest.approx(eval_loss(model, *images_and_labels(valid)), rel=1e-5)


def test_label_smoothing_touches_the_training_loss_only() -> None:
    train, valid = loader([0, 1, 2, 0]), loader([0, 1, 2, 1, 0])
    plain, smooth = (
        fit(ImageClassifier(small_network(), num_classes=3, label_smoothing=amount, learning_rate=1e-30), train, valid)
        for amount in (0.0, 0.3)
    )
    assert metric(smooth, metrics.VAL_LOSS) == pytest.approx(metric(plain, metrics.VAL_LOSS), rel=1e-6)
    assert metric(smooth, metrics.TRAIN_LOSS) != pytest.approx(metric(plain, metrics.TRAIN_LOSS), rel=1e-3)
    model = ImageClassifier(small_network(), num_classes=3)
    scores, labels = model.eval()(images_and_labels(train)[0]).detach(), images_and_labels(train)[1]
    wanted = nn.functional.cross_entropy(scores, labels, label_smoothing=0.3)
    assert metric(smooth, metrics.TRAIN_LOSS) == pytest.approx(float(wanted), rel=1e-4)


# The optimiser


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_holds_every_trained_parameter_once_and_no_other(optimizer: str) -> None:
    model = ImageClassifier(small_network(), num_classes=3, trainable="last_block", optimizer=optimizer)
    trainer = fit(model, loader([0, 1, 2, 0]), loader([0, 1, 2]))
    held = [id(parameter) for group in trainer.optimizers[0].param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.network.parameters() if parameter.requires_grad)


def test_head_step_size_is_what_is_logged() -> None:
    model = ImageClassifier(
        small_network(), num_classes=3, trainable="all", learning_rate=0.25, backbone_learning_rate_scale=0.5
    )
    trainer = fit(model, loader([0, 1, 2, 0]), loader([0, 1, 2]))
    assert metric(trainer, metrics.LEARNING_RATE) == pytest.approx(0.25)
    assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {0.25, 0.125}


# The course of the step size


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 10, 33, 100, 1_001])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # nothing is optimised here
def test_one_cycle_equals_that_of_torch_step_for_step(total: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=total, pct_start=0.3, cycle_momentum=False
    )
    for step in range(total):
        factor = learning_rate_factor(step, total, schedule="one_cycle", warmup_steps=0)
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        if step + 1 < total:
            scheduler.step()


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("total", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("warmup", [0, 1, 2, 10, 100, 150])
def test_factor_is_always_a_share(schedule: Schedule, total: int, warmup: int) -> None:
    for step in range(2 * total + 2):  # Lightning asks for one step more than it takes
        assert 0 <= learning_rate_factor(step, total, schedule=schedule, warmup_steps=warmup) <= 1


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warmup_rises_in_equal_steps_to_the_peak(schedule: Schedule) -> None:
    factors = [learning_rate_factor(step, 40, schedule=schedule, warmup_steps=9) for step in range(10)]
    assert factors == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_one_cycle_peaks_where_the_warmup_ends() -> None:
    factors = [learning_rate_factor(step, 40, schedule="one_cycle", warmup_steps=9) for step in range(40)]
    assert factors.index(max(factors)) == 8
    assert max(factors) == 1


def test_warmup_is_linear_and_cosine_ends_at_nothing() -> None:
    factors = [learning_rate_factor(step, 20, schedule="cosine", warmup_steps=4) for step in range(20)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == 1.0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 <= factors[-1] < 0.02
    assert learning_rate_factor(19, 20, schedule="constant", warmup_steps=4) == 1.0
