"""What a run trains is decided once, from its config, before anything is opened."""

from __future__ import annotations

import pytest

from experiments.config import RunConfig, override
from experiments.errors import UserError
from experiments.task import HeadTask, PhotoTask, task_of

HEAD = {"model.backbone": "resnet18", "model.trainable": "head", "trainer.accelerator": "cpu"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, HeadTask),
        ({"data.cache": "features"}, HeadTask),
        ({"data.cache": "decoded"}, PhotoTask),
        ({"data.cache": "none"}, PhotoTask),
        ({"model.trainable": "last_block"}, PhotoTask),
        ({"model.trainable": "all"}, PhotoTask),
        ({"model.backbone": "squeezenet1_1"}, PhotoTask),  # its head is a convolution
    ],
)
def test_a_head_is_trained_on_features_where_backbone_and_cache_allow_it(
    values: dict[str, object], kind: type[object]
) -> None:
    assert type(task_of(override(RunConfig(), HEAD | values))) is kind


def test_features_of_a_head_that_is_not_linear_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.cache features needs a linear head, which squeezenet1_1 lacks"):
        task_of(override(RunConfig(), HEAD | {"model.backbone": "squeezenet1_1", "data.cache": "features"}))


@pytest.mark.parametrize(
    "values", [{"trainer.record": "light"}, {"trainer.profile": True}, {"trainer.devices": 2}, {"trainer.num_nodes": 2}]
)
def test_what_must_see_each_step_of_a_head_has_lightning_clip_gradients(values: dict[str, object]) -> None:
    clipped = override(RunConfig(), HEAD | {"trainer.gradient_clip": 0.5})
    at_once = HeadTask(clipped, steps_at_once=True)
    assert (task_of(clipped), at_once.gradient_clip) == (at_once, None)
    watched = override(clipped, values)
    assert task_of(watched) == HeadTask(watched, steps_at_once=False)
    assert task_of(clipped, single_steps=True) == HeadTask(clipped, steps_at_once=False)
    assert task_of(watched).gradient_clip == 0.5


def test_a_head_always_trains_in_float32_and_is_never_compiled() -> None:
    config = override(RunConfig(), HEAD | {"trainer.precision": "bf16-mixed", "trainer.compile": True})
    head, photos = task_of(config), task_of(override(config, {"data.cache": "none"}))
    assert (head.precision, photos.precision) == ("32-true", "bf16-mixed")
    assert (head.compiles_when_it_pays, photos.compiles_when_it_pays) == (False, False)
    assert not head.profile_settings.compiled and head.profile_settings.cache == "features"
