"""Clients of AWS, and its error codes. Credentials come from boto3's own chain and are never read here."""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import ClientError

from experiments.errors import UserError
from sagemaker_launch.aws.recording import record
from sagemaker_launch.aws.retries import AT_START_SECONDS, WaitingOut
from sagemaker_launch.aws.sessions import (
    REHEARSAL_CONFIG,
    credentials_of,
    is_here,
    rehearsal_url,
    session,
    usable_settings,
)
from sagemaker_launch.settings.cloud import CloudSettings

THREADS = 16
"""S3 objects that are transferred at the same time, and connections that a client keeps."""
NOT_THERE = ("ResourceNotFound", "ValidationException")
"""SageMaker's error codes for a job that does not exist: of a tuning job, of a training job."""


def client(service: str, settings: CloudSettings, *, patience_seconds: float = AT_START_SECONDS, **options: Any) -> Any:
    """A client that retries when AWS is busy.

    Args:
        patience_seconds: time in which a call is repeated that AWS does not answer.
        options: of botocore's Config.

    Raises:
        UserError: if no region is set anywhere; if AWS's settings name what does not exist, or send only some calls to
            this machine.
    """
    url = rehearsal_url()
    defaults = {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"mode": "standard", "total_max_attempts": sys.maxsize},  # `WaitingOut` decides
        "max_pool_connections": THREADS,
        **(REHEARSAL_CONFIG if url else {}),
    }
    own = session()
    with usable_settings():
        made = own.client(service, endpoint_url=url, region_name=region(settings), config=Config(**defaults | options))
        _ = urlsplit(made.meta.endpoint_url).port  # raises for a number that is no port
    if is_rehearsal(made) and url is None:
        raise UserError(
            f"the address of {service} must be AWS's, or AWS_ENDPOINT_URL the rehearsal's for all services, got "
            f"{made.meta.endpoint_url} for {service} alone: look for AWS_ENDPOINT_URL_… in the environment and "
            f"endpoint_url in ~/.aws/config"
        )
    WaitingOut(f"AWS ({service})", credentials_of(own), patience_seconds).register(made)
    record(made)
    return made


def region(settings: CloudSettings) -> str:
    """The region that is set, or the one that boto3 finds.

    Raises:
        UserError: if there is none.
    """
    # boto3 itself does not read AWS_REGION, unlike AWS's other SDKs.
    found = settings.region or os.environ.get("AWS_REGION") or session().region_name
    if found is None:
        raise UserError("cloud.region must be set (--cloud.region us-east-1, or AWS_REGION), got none")
    return str(found)


def is_rehearsal(client: Any) -> bool:
    """Whether the service is a rehearsal on this machine."""
    return is_here(client.meta.endpoint_url)


def origin(client: Any) -> str:
    """The tag `origin` of the runs of its jobs."""
    return "rehearsal" if is_rehearsal(client) else "sagemaker"


def error_code(error: ClientError) -> str:
    """AWS's code of an error."""
    return str(error.response.get("Error", {}).get("Code", ""))
