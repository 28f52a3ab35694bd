"""A finished model in int8: quantised once on the photos that it was trained on, and accepted if it is as accurate."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from experiments.config import CUT_FIELDS, RunConfig, override, require
from experiments.console import say
from experiments.data.datasets import photo_root
from experiments.data.inputs import forget_opened, open_data_once, say_data
from experiments.errors import CommandError, UserError
from experiments.runs.processes import die_with_parent, pipe, start_process
from experiments.runs.scoring import Scores, predict_log_probabilities
from lightning_modules.data import ClassFolderData
from lightning_modules.files import file_sha256, replaced_whole
from lightning_modules.inference import (
    MANIFEST_FILE,
    BadExportError,
    BadImageError,
    Model,
    check_golden,
    decode_image,
    load_export,
    read_json,
)
from lightning_modules.locks import KernelLock
from lightning_modules.openvino_cpu import (
    INT8_FOLDER,
    INT8_GOLDEN,
    OpenVino,
    convert,
    file_hashes,
    quantize_classifier,
    read_int8,
    write_converted,
)
from lightning_modules.process import prepare_process

MAX_DROP = 0.002
"""Most that the validation accuracy may drop. Below 500 photos, which one photo changes by more, none may be lost."""
GOLDEN_SHARE = 0.1
"""Bound of int8 for the logits of the golden photo: share of the distance between the trainer's largest and smallest
logit. ResNet50 on dogs6 was off by 0.012 in the median of 300 photos, and by 0.097 at most."""
CALIBRATION_PHOTOS = 128
"""Training photos from which the ranges of int8 are measured. 300, NNCF's default, were not closer to float32."""
INPUT_BYTES = 1_000_000_000
"""Memory of photos as the network's input: 1,660 of 224 pixels. Layers are ranked by no more validation photos."""
PACKAGES = ("openvino", "nncf")
NUMBERS = ("float32_val_accuracy", "int8_val_accuracy", "valid_images", "changed_images", "golden_difference")
"""What is said of a model in int8, beside the bound of its scores."""
OPTION = "--cloud.endpoint.precision int8"
"""What asks for it."""


@dataclass(frozen=True)
class Int8:
    """A model that was quantised."""

    export: Path
    """Export folder with the network in int8; the given one, without it, if int8 was not accepted."""
    is_accepted: bool
    facts: Mapping[str, Any]
    """What `golden/int8.json` says."""

    @property
    def accuracies(self) -> dict[str, float]:
        """Validation accuracy of both precisions."""
        return {name: self.facts[name] for name in ("float32_val_accuracy", "int8_val_accuracy")}

    @property
    def summary(self) -> str:
        """Accuracies, golden photo and verdict in one sentence."""
        facts = self.facts
        accuracies = (
            f"int8: val_accuracy {facts['int8_val_accuracy']:.4f}, float32 {facts['float32_val_accuracy']:.4f}, of "
            f"{facts['valid_images']} photos, of which {facts['changed_images']} get another class; golden photo off "
            f"by {facts['golden_difference']:.2g}, bound {facts['tolerance']:.2g}"
        )
        return accuracies if self.is_accepted else f"{accuracies}; float32 is served: {facts['refused']}"


def require_quantizer() -> None:
    """Refuse int8 where the packages that quantise are missing."""
    missing = " and ".join(name for name in PACKAGES if importlib.util.find_spec(name) is None)
    rule = f"be float32 without {missing} (pip install '.[quantized]')"
    require(not missing, "cloud.endpoint.precision", rule, "int8")


def quantize_export(export: Path, config: RunConfig) -> Int8:
    """Quantise the network of an export, once for all commands, or find what was made before.

    It is calibrated on training photos of the model's run. It is accepted if its accuracy on the validation photos is
    at most MAX_DROP below that of float32, and its scores of the golden photo are within the stated bound.

    Args:
        export: which stays as it is.
        config: `data.root` names the photos if they are not where the model's run found them.

    Raises:
        UserError: if these photos are not here, or packages are missing, or OpenVINO can't run the network.
        BadExportError: if the export is not whole.
        BadImageError: if a photo was damaged since.
    """
    if (export / INT8_GOLDEN).is_file():  # an archive of `deploy`
        return _read(export)
    require_quantizer()
    versions = {name: metadata.version(name) for name in PACKAGES}
    # All files: equal weights may have got other class names, which are part of what is served.
    files = {path.relative_to(export).as_posix(): file_sha256(path) for path in export.rglob("*") if path.is_file()}
    made_of = [sorted(files.items()), versions, MAX_DROP, GOLDEN_SHARE, CALIBRATION_PHOTOS]
    folder = config.output_dir / "int8" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with KernelLock(Path(f"{folder}.lock")):
        if not folder.is_dir():
            _in_own_process(export, config, folder, versions)
    facts = read_json(folder / INT8_GOLDEN)
    return Int8(export, False, facts) if facts.get("refused") else _read(folder)


def _read(export: Path) -> Int8:
    """A model that was quantised and accepted before.

    Raises:
        BadExportError: as `read_int8`, or if the export does not state its accuracies.
    """
    facts = read_int8(export)
    missing = [name for name in NUMBERS if not isinstance(facts.get(name), int | float)]
    if missing:
        raise BadExportError(f"{export / INT8_GOLDEN} must state {', '.join(missing)} as numbers")
    return Int8(export, True, facts)


def _in_own_process(*arguments: Any) -> None:
    """`_quantize`. It leaves threads and gigabytes, and `serve` may not have threads when it forks.

    Raises:
        UserError, BadExportError, BadImageError: as `_quantize`.
        CommandError: if the process ends without a result.
    """
    ours, theirs = pipe()
    process = start_process(_quantize_and_tell, (theirs, *arguments), name="quantising", daemon=True)
    theirs.close()
    try:
        error = ours.recv()
    except EOFError:
        process.join()
        raise CommandError(
            f"the process that quantises ended with exit code {process.exitcode}: its last lines are above"
        ) from None
    process.join()
    if error is not None:
        raise error


def _quantize_and_tell(told: Connection, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    die_with_parent()
    try:
        _quantize(*arguments)
    except (UserError, BadExportError, BadImageError) as error:
        told.send(error)
    else:
        told.send(None)


def _quantize(export: Path, config: RunConfig, folder: Path, versions: Mapping[str, str]) -> None:
    """Write the folder: the export with its network in int8, or why that was refused."""
    prepare_process()
    model = load_export(export)
    check_golden(export, model)  # whose photo and scores int8 is compared with
    data = _photos_of(export, config, model)
    say(f"quantising {export} to int8, once: this takes a minute, or some if layers have to stay in float32")
    most = max(1, INPUT_BYTES // (4 * 3 * model.preprocessing.image_size**2))
    judged = data.folders.valid.sample(most)
    # Outside of what is caught: a photo that can't be read is no fault of the network.
    calibration_inputs, judged_inputs = (
        list(data.split_inputs(split, torch.device("cpu")))
        for split in (data.folders.train.sample(min(CALIBRATION_PHOTOS, most)), judged)
    )
    try:
        exact = convert(model.network, model.preprocessing.image_size)
        rough = quantize_classifier(exact, calibration_inputs, judged_inputs, judged.labels, MAX_DROP)
        networks = [OpenVino(one, torch.get_num_threads()) for one in (exact, rough)]
    except Exception as error:  # a converter may fail on any layer with any error
        reason = " ".join(str(error).split())[:500]
        raise UserError(
            f"cloud.endpoint.precision must be float32 for {export}, got 'int8': OpenVINO can't run it: {reason}"
        ) from error
    facts = {**_compare(export, model, data, *networks), **versions}
    facts["refused"] = _why_refused(facts)
    with replaced_whole(folder) as part:
        if facts["refused"]:
            (part / "golden").mkdir(parents=True)
        else:
            shutil.copytree(export, part)
            (part / INT8_FOLDER).mkdir()
            write_converted(rough, part / INT8_FOLDER)
            facts["sha256"] = file_hashes(part / INT8_FOLDER)
        (part / INT8_GOLDEN).write_text(json.dumps(facts, indent=2) + "\n")


def _photos_of(export: Path, config: RunConfig, model: Model) -> ClassFolderData:
    """The photos that a model was trained on, divided as they were then.

    Raises:
        UserError: if they are not here.
    """
    manifest = read_json(export / MANIFEST_FILE)
    trained, divided = manifest.get("config", {}), manifest.get("data", {})
    try:
        root = config.data.root or trained["data.root"]
        values = {name: divided[name.removeprefix("data.")] for name in CUT_FIELDS}
        values |= {name: trained[name] for name in ("data.name", "data.max_bad_fraction")}
        fingerprint = divided["fingerprint"]
        config = override(config, values | {"data.root": None if root is None else str(root)})
    except (KeyError, TypeError, ValueError) as error:
        raise BadExportError(
            f"{export / MANIFEST_FILE} must say what the model was trained on, for {OPTION}: {error}"
        ) from error
    needed = f"have the photos that the model was trained on, by which int8 is calibrated and judged ({OPTION})"
    place = photo_root(config.data)
    is_made_here = config.data.name == "digits"
    if not (place.is_dir() or is_made_here):
        raise UserError(f"data.root must {needed}, got {str(place)!r}, which is not here: add --data.root FOLDER")
    forget_opened()
    folders = open_data_once(config)
    if folders.fingerprint != fingerprint or folders.class_names != model.class_names:
        raise UserError(f"data.root must {needed}, got {str(place)!r}, which has others: add --data.root FOLDER")
    say_data(config)
    return ClassFolderData(folders, preprocessing=model.preprocessing, batch_size=config.data.batch_size)


def _compare(export: Path, model: Model, data: ClassFolderData, exact: OpenVino, rough: OpenVino) -> dict[str, Any]:
    """Both networks on the validation photos, and on the golden one."""
    valid, cpu = data.folders.valid, torch.device("cpu")
    scores = [
        Scores.of_split(data.folders, valid, predict_log_probabilities(one, data.split_inputs(valid, cpu)))
        for one in (exact, rough)
    ]
    before, after = (one.metrics("val") for one in scores)
    golden = read_json(export / "golden" / "scores.json")
    photo = decode_image((export / "golden" / "image.jpg").read_bytes())
    wanted = torch.tensor(golden["logits"])
    with torch.inference_mode():
        logits = rough(model.preprocessing.normalise(model.preprocessing.crop(photo)[None]))[0]
    return {
        "class_name": model.class_names[int(logits.argmax())],
        "logits": logits.tolist(),
        "tolerance": GOLDEN_SHARE * float(wanted.max() - wanted.min()),
        "golden_difference": float((logits - wanted).abs().max()),
        "golden_class_is_equal": model.class_names[int(logits.argmax())] == golden["class_name"],
        "float32_val_accuracy": before["val_accuracy"],
        "int8_val_accuracy": after["val_accuracy"],
        "float32_val_loss": before["val_loss"],
        "int8_val_loss": after["val_loss"],
        "valid_images": len(valid),
        "changed_images": int((scores[0].predictions != scores[1].predictions).sum()),
    }


def _why_refused(facts: Mapping[str, Any]) -> str:
    """Why float32 is served; empty if int8 is accepted."""
    lost = round((facts["float32_val_accuracy"] - facts["int8_val_accuracy"]) * facts["valid_images"])
    if lost > MAX_DROP * facts["valid_images"]:
        return f"int8 loses {lost} of {facts['valid_images']} validation photos, more than {MAX_DROP:.1%}"
    if not facts["golden_class_is_equal"]:
        return "the golden photo gets another class"
    if not facts["golden_difference"] <= facts["tolerance"]:
        return "the logits of the golden photo are beyond their bound"
    return ""
