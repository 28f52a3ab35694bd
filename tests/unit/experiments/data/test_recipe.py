"""The recipe of a backbone's weights: images are prepared as torchvision prepares them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torchvision import models
from torchvision.transforms.v2 import functional as F

from experiments.config import RunConfig, override, to_flat, with_recipe
from experiments.data.inputs import preprocessing
from experiments.errors import UserError
from experiments.study.identity import Photos, StudyIdentity
from experiments.study.search_space import ChoiceRange
from lightning_modules import inference, network
from lightning_modules.inference import Interpolation, Preprocessing, classifier_names, decode_image
from lightning_modules.network import recipe
from sagemaker_launch.container.hyperparameters import encode
from tests.conftest import real
from tests.pictures import noisy_picture, smooth_picture

WIDTHS_AND_HEIGHTS = [(90, 70), (70, 90), (64, 64), (500, 375), (375, 500), (700, 640), (231, 233), (300, 80)]


def config_for(backbone: str, **values: object) -> RunConfig:
    typed = {name.replace("__", "."): value for name, value in values.items()}
    return with_recipe(override(RunConfig(), {"model.backbone": backbone, **typed}))


def drawn_photos() -> list[Tensor]:
    smooth = [F.pil_to_tensor(smooth_picture(*size)) for size in WIDTHS_AND_HEIGHTS]
    noisy = [F.pil_to_tensor(noisy_picture((200, 90, 40), size, noise=60.0)) for size in (57, 311)]
    return smooth + noisy


def real_photos() -> list[Tensor]:
    files = itertools.islice(sorted(real("data/clothing").glob("valid/*/*")), 0, 300, 40)
    return [decode_image(path.read_bytes()) for path in [*files, *sorted(real("images").glob("*.jpg"))[:2]]]


@pytest.mark.parametrize("photos", [drawn_photos, real_photos])
def test_every_classifier_sees_what_its_weights_were_made_for(photos: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        pytest.fail("a network is built or weights are downloaded")

    for module in (inference, network):
        monkeypatch.setattr(module, "build_network", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    ten = photos()  # type: ignore[operator]
    assert len(ten) == 10
    # Many classifiers share a recipe, of which the text names every part.
    pairs = {}
    for backbone in classifier_names():
        theirs = models.get_model_weights(backbone).DEFAULT.transforms()
        pairs[preprocessing(config_for(backbone)), repr(theirs)] = backbone, theirs
    assert len(pairs) > 15
    for (ours, _), (backbone, theirs) in pairs.items():
        for image in ten:
            wanted = theirs(image)
            seen = ours.normalise(ours.crop(image)[None])[0]
            assert seen.shape == wanted.shape, backbone
            assert float((seen - wanted).abs().max()) < 1e-3, backbone


def test_a_recipe_has_the_statistics_and_the_interpolation_of_the_weights() -> None:
    assert recipe("resnet50") == Preprocessing(224, 232)
    half = (0.5, 0.5, 0.5)
    assert recipe("efficientnet_v2_l") == Preprocessing(480, 480, half, half, Interpolation.BICUBIC)
    assert recipe("swin_t").interpolation == Interpolation.BICUBIC
    assert recipe("vit_h_14").image_size == 518


def test_sizes_that_are_left_open_are_those_of_the_recipe() -> None:
    data = config_for("swin_t").data
    assert (data.image_size, data.crop_fraction) == (224, 224 / 232)
    assert preprocessing(config_for("inception_v3", model__weights="none")).resize_size == 342


@pytest.mark.parametrize(
    ("typed", "image_size", "resize_size"),
    [
        ({"data__image_size": 128}, 128, 133),  # 128 * 232 / 224
        ({"data__crop_fraction": 1.0}, 224, 224),
        ({"data__image_size": 64, "data__crop_fraction": 0.875}, 64, 73),
    ],
)
def test_typed_sizes_win_one_by_one(typed: dict[str, object], image_size: int, resize_size: int) -> None:
    made = preprocessing(config_for("resnet50", **typed))
    assert (made.image_size, made.resize_size) == (image_size, resize_size)


def test_a_resolved_config_stays_as_it_is() -> None:
    config = config_for("swin_t")
    assert with_recipe(config) == config == override(RunConfig(), to_flat(config))
    assert encode(config)["data__image_size"] == "224", "jobs send what was resolved"


def test_a_backbone_that_each_trial_draws_leaves_the_sizes_to_the_trial() -> None:
    space = {"model.backbone": ChoiceRange(("resnet18", "inception_v3"))}
    study = with_recipe(RunConfig(), drawn=space)
    assert study.data.image_size is None
    assert with_recipe(override(study, {"model.backbone": "inception_v3"})).data.image_size == 299
    assert with_recipe(RunConfig(), drawn=["data.batch_size"]).data.image_size == 224


def test_an_unknown_backbone_has_no_recipe() -> None:
    with pytest.raises(UserError, match=r"model\.backbone must be .* got 'resnet5O'; did you mean"):
        config_for("resnet5O")


def test_a_study_begun_with_the_sizes_of_before_is_refused_by_option() -> None:
    photos = Photos("0" * 64, ("Beagle", "Collie"), 20, 10, 0)
    config = override(RunConfig(), {"model.backbone": "resnet50", "data.image_size": 224, "data.crop_fraction": 0.875})
    before = StudyIdentity.of(config, {}, photos)
    with pytest.raises(UserError, match=r"data\.crop_fraction must stay 0\.875 for study .*, got 0\.9655"):
        before.check_same(StudyIdentity.of(config_for("resnet50"), {}, photos))
    before.check_same(StudyIdentity.of(config_for("resnet50", data__crop_fraction=0.875), {}, photos))
    same = override(config, {"model.backbone": "alexnet"})  # whose recipe has the sizes of before
    StudyIdentity.of(same, {}, photos).check_same(StudyIdentity.of(config_for("alexnet"), {}, photos))


@pytest.mark.parametrize(("backbone", "refused"), [("alexnet", False), ("efficientnet_b0", True)])
def test_a_study_begun_with_another_interpolation_is_refused(backbone: str, refused: bool) -> None:
    photos = Photos("0" * 64, ("Beagle", "Collie"), 20, 10, 0)
    now = StudyIdentity.of(config_for(backbone), {}, photos)
    noted = now.to_dict()
    del noted["interpolation"]
    before = StudyIdentity.from_dict(noted)
    assert before is not None
    if refused:
        with pytest.raises(UserError, match=r"study_name must be another one: .* bilinear .* wants bicubic now"):
            before.check_same(now)
    else:
        before.check_same(now)
    assert StudyIdentity.from_dict(now.to_dict()) == now


def test_a_study_that_draws_its_backbone_has_the_interpolations_of_all() -> None:
    space = {"model.backbone": ChoiceRange(("resnet18", "swin_t"))}
    photos = Photos("0" * 64, ("Beagle", "Collie"), 20, 10, 0)
    assert StudyIdentity.of(with_recipe(RunConfig(), drawn=space), space, photos).interpolation == "bicubic, bilinear"
