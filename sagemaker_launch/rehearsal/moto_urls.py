"""moto's tables of URLs, which its server reads: the one place where our answers replace moto's.

`pyproject.toml` has the versions; written against moto 5.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import moto.applicationautoscaling.urls
import moto.iam.urls
import moto.logs.urls
import moto.resourcegroupstaggingapi.urls
import moto.sagemaker.urls
import moto.scheduler.urls

TABLES: dict[str, dict[str, Any]] = {
    "sagemaker": moto.sagemaker.urls.url_paths,
    "applicationautoscaling": moto.applicationautoscaling.urls.url_paths,
    "iam": moto.iam.urls.url_paths,
    "logs": moto.logs.urls.url_paths,
    "resourcegroupstaggingapi": moto.resourcegroupstaggingapi.urls.url_paths,
    "scheduler": moto.scheduler.urls.url_paths,
}
"""Paths to what answers them, by service."""


def answer(service: str, dispatch: Callable[..., Any]) -> None:
    """Answer all requests to a service, in this process."""
    table = TABLES[service]
    assert table, f"moto has URLs of {service}, which its server has not read yet"
    for path in table:
        assert callable(table[path]), f"moto answers {path} of {service} with a function"
        table[path] = dispatch
