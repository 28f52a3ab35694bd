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
from moto.core.responses import BaseResponse

TABLES: dict[str, dict[str, Any]] = {
    "sagemaker": moto.sagemaker.urls.url_paths,
    "applicationautoscaling": moto.applicationautoscaling.urls.url_paths,
    "iam": moto.iam.urls.url_paths,
    "logs": moto.logs.urls.url_paths,
    "resourcegroupstaggingapi": moto.resourcegroupstaggingapi.urls.url_paths,
    "scheduler": moto.scheduler.urls.url_paths,
}
"""Paths to what answers them, by service."""


def obey(key: str) -> None:
    """Let moto carry out the operation that was checked, and no other, in this process.

    moto looks for operation and parameters in the form, in the URL, and in any body that it can split at `&`: a text
    such as `&Action=DeleteRole&` in the JSON of another operation would be carried out.

    Args:
        key: of what was checked in a request's WSGI environment, with its `service` and `operation`.
    """
    setup, action = BaseResponse.setup_class, BaseResponse._get_action

    def setup_class(response: BaseResponse, request: Any, *given: Any, **options: Any) -> None:
        setup(response, request, *given, **options)
        checked = request.environ.get(key)
        if checked is not None and checked.service != "s3" and not request.query_string and not request.form:
            response.querystring.clear()  # what is left came from a body that is no form, or from headers

    def get_action(response: BaseResponse) -> str:
        checked = response.normalized_request.environ.get(key)
        return action(response) if checked is None else str(checked.operation)

    BaseResponse.setup_class, BaseResponse._get_action = setup_class, get_action  # type: ignore[method-assign,assignment]


def answer(service: str, dispatch: Callable[..., Any]) -> None:
    """Answer all requests to a service, in this process."""
    table = TABLES[service]
    assert table, f"moto has URLs of {service}, which its server has not read yet"
    for path in table:
        assert callable(table[path]), f"moto answers {path} of {service} with a function"
        table[path] = dispatch
