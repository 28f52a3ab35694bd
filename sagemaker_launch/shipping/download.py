"""Download the results of jobs from S3: scores, recordings and profiles beside checkpoints, and smdebug's tensors."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from experiments.console import progress, say
from experiments.errors import UserError
from experiments.runs.scoring import Scores
from lightning_modules.files import is_own_file
from lightning_modules.threads import map_in_order
from sagemaker_launch.aws.client import THREADS
from sagemaker_launch.shipping.archive import is_plain, read_entries, refusing_damaged


def fetch_scores(s3: Any, uri: str, target: Path, root: Path) -> None:
    """Download the scores of a job from its `output.tar.gz`.

    Args:
        root: folder of the photos on this machine.

    Raises:
        UserError: if the archive holds no scores that can be read.
    """
    url = urlsplit(uri)
    archive = target.with_name(f".{target.name}.tar.gz")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        s3.download_file(url.netloc, url.path.lstrip("/"), str(archive))
        with refusing_damaged(archive), closing(read_entries(archive)) as entries:
            found = (
                file for entry, file in entries if is_plain(entry) and entry.name.removeprefix("./") == target.name
            )
            file = next(found, None)
            if file is None:
                raise UserError(f"{uri} must hold {target.name}, as the jobs of this version leave it")
            scores = Scores.load(io.BytesIO(file.read()))
        replace(scores, root=root).save(target)
    finally:
        archive.unlink(missing_ok=True)


def fetch_folder(s3: Any, uri: str, folder: Path) -> int:
    """Download all missing objects below a URI.

    Left out are folders, temporary files and what SageMaker's uploader leaves beside the files that it copies.

    Returns:
        The number of objects.

    Raises:
        UserError: if a key would be written outside of the folder.
    """
    url = urlsplit(uri)
    prefix = f"{url.path.strip('/')}/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=url.netloc, Prefix=prefix)
    listed = (entry for page in pages for entry in page.get("Contents", ()))
    # The console makes a folder as an empty object whose key ends in a slash.
    entries = [
        entry for entry in listed if not entry["Key"].endswith("/") and is_own_file(entry["Key"].removeprefix(prefix))
    ]
    missing: list[tuple[str, Path]] = []
    for entry in entries:
        path = folder / entry["Key"].removeprefix(prefix)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{uri} must hold names below it, got {entry['Key']!r}")
        if not path.is_file() or path.stat().st_size != entry["Size"]:
            missing.append((entry["Key"], path))
    if missing:
        say(f"fetching {len(missing)} of {len(entries)} files from {uri}")

    def fetch(key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(url.netloc, key, str(path))

    with ThreadPoolExecutor(THREADS) as pool, progress("fetching", len(missing), "file") as advance:
        for _ in map_in_order(pool, lambda key_and_path: fetch(*key_and_path), missing):
            advance(1)
    return len(entries)
