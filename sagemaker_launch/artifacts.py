"""What a job has left beside its model: recordings and profiles, which come home by way of its checkpoints in S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from experiments.run_folder import RunFolder
from sagemaker_launch.launch import TRAINING


def fetch_artifacts(s3: Any, described: Mapping[str, Any], folder: RunFolder) -> None:
    """Download the artifacts of a job's run folder, which the service has copied to S3 while it ran.

    Raises:
        ValueError: if a key leads out of the folder.
    """
    place = urlsplit(f"{described['CheckpointConfig']['S3Uri']}/{described[TRAINING.name]}/{folder.artifacts.name}/")
    prefix = place.path.lstrip("/")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=place.netloc, Prefix=prefix)
    for key in (entry["Key"] for page in pages for entry in page.get("Contents", ())):
        target = (folder.artifacts / key.removeprefix(prefix)).resolve()
        if not target.is_relative_to(folder.artifacts.resolve()):
            raise ValueError(f"s3://{place.netloc}/{key} must stay inside the artifacts of {folder.path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(place.netloc, key, str(target))
