"""What jobs have left in S3: recordings and profiles among their checkpoints, and the tensors of smdebug."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from experiments.console import say
from sagemaker_launch.storage import THREADS


def fetch_folder(s3: Any, uri: str, folder: Path) -> int:
    """Download all that lies below a URI and is not here yet.

    Returns:
        How many objects there are.

    Raises:
        ValueError: if a name would leave the folder.
    """
    place = urlsplit(uri)
    prefix = f"{place.path.strip('/')}/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=place.netloc, Prefix=prefix)
    entries = [entry for page in pages for entry in page.get("Contents", ())]
    missing: list[tuple[str, Path]] = []
    for entry in entries:
        path = folder / entry["Key"].removeprefix(prefix)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{uri} must hold names below it, got {entry['Key']!r}")
        if not path.is_file() or path.stat().st_size != entry["Size"]:
            missing.append((entry["Key"], path))
    if missing:
        say(f"fetching {len(missing)} of {len(entries)} files from {uri}")

    def fetch(key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(place.netloc, key, str(path))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda one: fetch(*one), missing))
    return len(entries)
