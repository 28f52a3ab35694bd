"""The identity of a study: its search space, the settings that decide its results, and its photos.

The study's storage and the study's folder both keep an identity. Nothing is continued across two identities.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.config import RunConfig, decides_result, option_text, to_public, weights_digest
from experiments.console import say
from experiments.errors import UserError
from experiments.runs.folder import RunFolder
from experiments.study.search_space import SearchSpace, dump_search_space, extremes
from experiments.yaml_files import parse_yaml
from lightning_modules.files import replaced_whole
from lightning_modules.folders import ClassFolders


@dataclass(frozen=True)
class Photos:
    """The photos of a data set, as far as a study depends on them."""

    fingerprint: str
    class_names: tuple[str, ...]
    train: int
    valid: int
    test: int

    @classmethod
    def of(cls, folders: ClassFolders) -> Photos:
        """The photos of a data set that was scanned."""
        test = len(folders.test) if folders.test else 0
        return cls(folders.fingerprint, folders.class_names, len(folders.train), len(folders.valid), test)

    def __str__(self) -> str:
        names = ", ".join(self.class_names[:12]) + (", …" if len(self.class_names) > 12 else "")
        return (
            f"fingerprint {self.fingerprint[:12]}, {self.train:,} train, {self.valid:,} valid and {self.test:,} test "
            f"photos, {len(self.class_names)} classes: {names}"
        )


@dataclass(frozen=True)
class StudyIdentity:
    """The properties that all trials of a study share."""

    search_space: str
    """YAML."""
    config: Mapping[str, Any]
    """All fields, without passwords."""
    photos: Photos | None
    """None in a study of an older version, which did not note them."""
    interpolation: str = "bilinear"
    """How the photos of each backbone are resized; studies of older versions, which do not note it, are bilinear."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each weights file, by its path in the config; studies of older versions do not note it."""

    @classmethod
    def of(cls, config: RunConfig, space: SearchSpace, photos: Photos) -> StudyIdentity:
        """The identity of a study that is about to run."""
        from lightning_modules.network import recipe  # reading studies needs no torchvision

        backbones = extremes(space["model.backbone"]) if "model.backbone" in space else (config.model.backbone,)
        interpolation = ", ".join(sorted({recipe(str(backbone)).interpolation.value for backbone in backbones}))
        files = extremes(space["model.weights"]) if "model.weights" in space else (config.model.weights,)
        weights = {str(file): digest for file in files if (digest := weights_digest(str(file)))}
        return cls(dump_search_space(space), to_public(config), photos, interpolation, weights)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def for_trial(self) -> dict[str, Any]:
        """The fields that a trial stores, for JSON: all but the config, which the params of the trial contain."""
        return {name: value for name, value in self.to_dict().items() if name != "config"}

    @classmethod
    def from_dict(cls, noted: Mapping[str, Any]) -> StudyIdentity | None:
        """Parse the result of `to_dict` or the attributes of a study; None if they contain no identity."""
        if "config" not in noted:
            return None
        photos = noted.get("photos")
        if photos is not None:
            photos = Photos(**{**photos, "class_names": tuple(photos["class_names"])})
        interpolation, weights = noted.get("interpolation", cls.interpolation), noted.get("weights") or {}
        return cls(noted["search_space"], noted["config"], photos, interpolation, weights)

    def check_same(self, other: StudyIdentity) -> None:
        """Refuse another identity.

        Args:
            other: that of the command, which may differ in fields that leave trials comparable.

        Raises:
            UserError: naming what differs, and what to do.
        """
        study = f"study {other.config['sweep.study_name']!r}"
        advice = "choose another sweep.study_name, or go back"
        searched = parse_yaml(self.search_space)
        assert isinstance(searched, dict), "it was written from a search space"
        if searched != parse_yaml(other.search_space):
            raise UserError(f"search must stay as it was for {study}: {advice}; it was\n{self.search_space}")
        changed = {
            key: value
            for key, value in other.config.items()
            if is_fixed(key) and key not in searched and self.config.get(key, value) != value
        }
        # Also fields that were not typed, such as a default that another version changed.
        back = " ".join(option_text(key, self.config[key]) for key in changed)
        if changed:
            key, value = next(iter(changed.items()))
            raise UserError(f"{key} must stay {self.config[key]!r} for {study} ({advice} with {back}), got {value!r}")
        if self.interpolation != other.interpolation:
            raise UserError(
                f"sweep.study_name must be another one: trials of {study} resized photos by {self.interpolation} "
                f"interpolation, and model.backbone wants {other.interpolation} now"
            )
        replaced = [path for path, digest in self.weights.items() if other.weights.get(path, digest) != digest]
        if replaced:
            raise UserError(
                f"model.weights must be the file that the trials of {study} began with, and {replaced[0]} has other "
                "content now: choose another sweep.study_name, or put the old file back"
            )
        assert other.photos is not None, "a command knows its photos"
        if self.photos is not None and self.photos.fingerprint != other.photos.fingerprint:
            raise UserError(
                f"data.root must hold the photos of {study}: choose another sweep.study_name, or go back to those "
                f"photos.\n  photos of the study: {self.photos}\n  got: {other.photos}"
            )

    def is_same(self, other: StudyIdentity) -> bool:
        """Whether `check_same` passes."""
        try:
            self.check_same(other)
        except UserError:
            return False
        return True

    def check_trial(self, folder: RunFolder, config: RunConfig) -> None:
        """Refuse a trial folder of another study, or of other settings, than the trial that is about to run.

        Args:
            config: that of the trial.

        Raises:
            UserError: naming the folder and what differs.
        """
        record = folder.read()
        # The trial's params are its config; an older run folder has nothing else.
        of_study = StudyIdentity.from_dict({**record.study, "config": self.config}) if record.study else None
        differing = [
            f"{key} is {record.params[key]} there and {value} here"
            for key, value in to_public(config).items()
            if is_fixed(key) and record.params.get(key, str(value)) != str(value)
        ]
        if of_study is not None and not of_study.is_same(self):
            differing.append("it belongs to another study")
        if differing:
            raise UserError(
                f"output_dir must hold the trials of this study only: {folder.path} is of another one "
                f"({'; '.join(differing)}). Choose another sweep.study_name or output_dir, or move that folder away"
            )


def is_fixed(name: str) -> bool:
    """Whether a field must keep its value when a study is continued, so that its trials stay comparable."""
    return decides_result(name) or name == "sweep.study_name"


def read_identity(path: Path) -> StudyIdentity | None:
    """The identity in a file that `write_identity` wrote; None if there is none, or if the file is damaged."""
    if not path.is_file():
        return None
    try:
        return StudyIdentity.from_dict(dict(json.loads(path.read_bytes())))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        say(f"{path} is damaged ({type(error).__name__}): it is written again from the study's storage")
        return None


def write_identity(path: Path, identity: StudyIdentity) -> None:
    """Write an identity, whole or not at all."""
    with replaced_whole(path) as part:
        part.write_text(json.dumps(identity.to_dict(), indent=1))
