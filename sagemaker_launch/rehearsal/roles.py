"""Whether SageMaker can assume a role: it is in moto's IAM, belongs to the account, and trusts the service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moto.iam.models import iam_backends
from moto.sagemaker.exceptions import SagemakerClientError
from moto.utilities.utils import get_partition

from sagemaker_launch.rehearsal.iam import listed
from sagemaker_launch.rehearsal.rules import invalid

SERVICE = "sagemaker.amazonaws.com"
"""SageMaker as trust policies name it."""


def check_role(arn: str, account: str, region: str) -> None:
    """Refuse a role that SageMaker could not assume.

    Raises:
        SagemakerClientError: with AWS's words (awslabs/predictive-maintenance-using-machine-learning issue 3, and
            "Cross-account pass role is not allowed." of several services).
    """
    if arn.split(":")[4] != account:
        raise SagemakerClientError("AccessDeniedException", "Cross-account pass role is not allowed.")
    roles = iam_backends[account][get_partition(region)].get_roles()
    found = next((role for role in roles if role.arn == arn), None)
    if found is None or not _trusts(json.loads(found.assume_role_policy_document)):
        raise invalid(
            f"Could not assume role {arn}. Please ensure that the role exists and allows principal '{SERVICE}' to "
            "assume the role."
        )


def _trusts(policy: Mapping[str, Any]) -> bool:
    return any(
        statement["Effect"] == "Allow"
        and "sts:AssumeRole" in listed(statement["Action"])
        and SERVICE in listed(statement["Principal"].get("Service", []))
        for statement in listed(policy["Statement"])
    )
