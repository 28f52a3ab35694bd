"""`predict FOLDER` and `query FOLDER` find the same photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from lightning_modules.listing import find_photos
from sagemaker_launch.endpoints.query import SUFFIXES
from tests.unit.lightning_modules.test_export import export, tiny_network


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Twelve photos below three folders, and what is no photo."""
    folder = tmp_path / "photos"
    shutil.copytree(photos / "test", folder)
    for name in (".hidden.jpg", "notes.txt", ".ipynb_checkpoints/0.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no photo")
    return folder


def test_predict_names_all_photos_below_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(export(tiny_network(), tmp_path / "export"))
    assert main(["predict", str(folder), "--model", model, "--json"]) == 0
    named = [prediction["image"] for prediction in json.loads(capsys.readouterr().out)]
    assert len(named) == 12 and named == sorted(named)
    assert named == [str(path) for path in find_photos([folder], SUFFIXES)], "as `query` does"
    assert main(["predict", named[0], str(folder), "--model", model, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 13


def test_a_folder_without_photos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("")
    model = str(export(tiny_network(), tmp_path / "export"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["predict", str(empty), "--model", model]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: PHOTO must be a file or a folder with photos (.jpg, ")
    assert f"got {str(empty)!r}" in printed and printed.count("\n") == 1
