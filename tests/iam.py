"""What AWS decides by an identity-based policy, by the rules that AWS documents.

Sources, 2026: docs.aws.amazon.com/IAM/latest/UserGuide/, the pages reference_policies_evaluation-logic_policy-eval-
basics-single-account (an explicit deny, then an allow, else denied), reference_policies_elements_resource (wildcards)
and reference_policies_elements_condition_operators (a key that the request lacks fails all operators but ...IfExists
and Null; several keys and operators must all hold, of several values one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Context = Mapping[str, str]


def is_allowed(policy: Mapping[str, Any], action: str, resource: str, context: Context | None = None) -> bool:
    """Whether a policy allows an action on a resource.

    Args:
        context: condition keys of the request, such as `aws:RequestTag/project`, and their values.
    """
    effects = {
        statement["Effect"] for statement in policy["Statement"] if _covers(statement, action, resource, context or {})
    }
    return effects == {"Allow"}


def _covers(statement: Mapping[str, Any], action: str, resource: str, context: Context) -> bool:
    assert statement.keys() <= {"Effect", "Action", "Resource", "Condition"}, statement
    return (
        # Names of actions are the same in capitals and small letters, ARNs are not.
        any(_like(one.lower(), action.lower()) for one in statement["Action"])
        and any(_like(one, resource) for one in statement["Resource"])
        and all(
            _holds(operator, wanted, context.get(key))
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _holds(operator: str, wanted: str | list[str], value: str | None) -> bool:
    values = [wanted] if isinstance(wanted, str) else wanted
    if operator == "Null":
        return (value is None) == (values == ["true"])
    name, optional = operator.removesuffix("IfExists"), operator.endswith("IfExists")
    if value is None:
        return optional
    if name in ("StringEquals", "Bool"):
        return value in values
    if name in ("StringLike", "ArnLike", "ArnEquals"):
        return any(_like(one, value) for one in values)
    raise AssertionError(f"the policy uses {operator}, which this evaluator does not know")


def _like(pattern: str, text: str) -> bool:
    parts = (".*" if part == "*" else "." if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern))
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None
