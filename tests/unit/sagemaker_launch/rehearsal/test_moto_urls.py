"""moto carries out what was checked, also where it would read something else from the request."""

from __future__ import annotations

from typing import Any

import pytest
from moto.core.request import Request
from moto.core.responses import BaseResponse

from sagemaker_launch.rehearsal import moto_urls
from sagemaker_launch.rehearsal.calls import CALL, Call
from sagemaker_launch.rehearsal.signatures import RefusedRequestError
from tests.unsent import written

SMUGGLED = "mine&Action=DeleteLogStream&logGroupName=theirs&x="


class Logs(BaseResponse):
    """Reads a request as moto's services with JSON do."""

    def __init__(self) -> None:
        super().__init__("logs")


def read(group: str) -> tuple[str, Any]:
    """Operation and log group, as moto reads them from a checked request."""
    environ = written("logs", "DeleteLogGroup", {"logGroupName": group})
    environ |= {"wsgi.url_scheme": "http", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "5000"}
    environ[CALL] = Call.of(environ)
    response = Logs()
    response.setup_class(Request(environ))
    return response._get_action(), response._get_param("logGroupName")


def test_moto_carries_out_the_operation_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseResponse, "setup_class", BaseResponse.setup_class)  # both come back after the test
    monkeypatch.setattr(BaseResponse, "_get_action", BaseResponse._get_action)
    assert read(SMUGGLED) == ("DeleteLogStream", "theirs"), "moto has been mended: delete moto_urls.obey"
    moto_urls.obey(CALL)
    assert read(SMUGGLED) == ("DeleteLogGroup", SMUGGLED)


@pytest.mark.parametrize(("service", "operation"), [("logs", "DeleteLogGroup"), ("scheduler", "DeleteSchedule")])
def test_a_parameter_in_the_url_that_belongs_into_the_body_is_refused(service: str, operation: str) -> None:
    environ = written(service, operation)
    assert Call.of(environ).operation == operation
    environ |= {"QUERY_STRING": "Action=DeleteLogStream", "RAW_URI": environ["PATH_INFO"] + "?Action=DeleteLogStream"}
    with pytest.raises(RefusedRequestError, match="has no parameter Action in the URL"):
        Call.of(environ)
