"""What our own launcher makes in the rehearsal, for clients to attach to, and what it reported about it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from typing import Any

from experiments.config import to_yaml
from experiments.runs.folder import RunFolder
from sagemaker_launch.container.metric_lines import objective
from tests.cloud import Cloud

ENDPOINT = "launched"
SEARCH = """
optimizer.learning_rate: {type: float, low: 0.001, high: 0.05, log: true}
optimizer.name: {type: choice, values: [adamw, sgd]}
data.batch_size: {type: choice, values: [8, 16]}
"""
"""Ranges of each kind of value that a search has: numbers, words, choices of numbers."""


def launch(cloud: Cloud) -> dict[str, Any]:
    """Search, train the best, deploy it and synchronise, by the commands that a person types.

    Returns:
        Names, addresses and values as the commands reported them, for the scripts of the clients.
    """
    cloud.preset.write_text(to_yaml(cloud.config))
    search = cloud.home / "search.yaml"
    search.write_text(SEARCH)
    tuning_job = _job(_typed(cloud, "tune", f"--search={search}"))
    training_job = _job(_typed(cloud, "train", f"--best-of={tuning_job}"))
    endpoint_arn = _typed(cloud, "deploy", ENDPOINT, f"--best-of={tuning_job}").splitlines()[0]
    fetched = re.findall(r"fetching (s3://\S+/model\.tar\.gz)", _typed(cloud, "sync", "--models"))
    runs = {name: run for name, run in cloud.runs().items() if name != tuning_job}
    best_value = objective(cloud.config.sweep.metric)
    searched = {name: run.data.metrics[best_value] for name, run in runs.items() if name != training_job}
    export = RunFolder(cloud.home / "cloud" / training_job).export
    return {
        "project": cloud.settings.project,
        "tuning_job": tuning_job,
        "objective": best_value,
        "objectives": searched,
        "best": min(searched, key=lambda name: searched[name]),
        "training_job": training_job,
        "models": {job: uri for uri in fetched for job in runs if f"/{job}/" in uri},
        "settings": {name: dict(run.data.params) for name, run in runs.items()},
        "epochs": {
            name: [metrics["val_loss"] for _, metrics in sorted(cloud.history(run).items()) if "val_loss" in metrics]
            for name, run in runs.items()
        },
        "endpoint": ENDPOINT,
        "endpoint_arn": endpoint_arn,
        "photo": str(export / "golden" / "image.jpg"),
        "scores": json.loads((export / "golden" / "scores.json").read_text())["logits"],
    }


def _typed(cloud: Cloud, *arguments: str) -> str:
    """What a command of the launcher prints."""
    out, err = io.StringIO(), io.StringIO()
    with cloud.in_reach(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cloud.run(*arguments)
    assert code == 0, err.getvalue()
    return out.getvalue() + err.getvalue()


def _job(printed: str) -> str:
    """The name of the job whose ARN a command has printed first."""
    return printed.splitlines()[0].rpartition("/")[2]
