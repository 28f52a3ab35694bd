"""What AWS decides by identity-based policies, by the rules that AWS documents, for users and roles in moto's IAM.

Sources, 2026: docs.aws.amazon.com/IAM/latest/UserGuide/, the pages reference_policies_evaluation-logic_policy-eval-
basics-single-account (an explicit deny, then an allow, else denied), reference_policies_elements_resource (wildcards),
reference_policies_elements_condition_operators (a key that the request lacks fails all operators but negated ones,
...IfExists and Null; several keys and operators must all hold, of several values one) and
troubleshoot_access-denied (the words of a refusal).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from moto.core.responses import ActionResult
from moto.iam.models import IAMBackend, iam_backends
from moto.iam.responses import IamResponse

from sagemaker_launch.rehearsal import moto_urls

Context = Mapping[str, str]
Decision = Literal["allowed", "explicitDeny", "implicitDeny"]
"""As SimulatePrincipalPolicy calls them."""
ELEMENTS = {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"}
Policies = Iterable[Mapping[str, Any]]
PARTITIONS = ("aws", "aws-cn", "aws-us-gov")


def decide(policies: Policies, action: str, resource: str, context: Context | None = None) -> Decision:
    """What policies say together.

    Args:
        context: condition keys of the request, such as `aws:RequestTag/project`, and their values.

    Raises:
        NotImplementedError: if a policy uses what is not known here.
    """
    statements = [one for policy in policies for one in listed(policy["Statement"])]
    effects = {one["Effect"] for one in statements if _covers(one, action, resource, context or {})}
    if "Deny" in effects:
        return "explicitDeny"
    return "allowed" if effects else "implicitDeny"


class Access:
    """The policies of an account's users and roles. One without any policy may do everything."""

    def __init__(self, account: str) -> None:
        self._backends: list[IAMBackend] = [iam_backends[account][partition] for partition in PARTITIONS]

    def create_users(self, *names: str) -> None:
        """Create users without policies, for the keys that the server hands out."""
        for backend in self._backends:
            for name in names:
                backend.create_user("us-east-1", name)

    def policies_of(self, arn: str) -> list[Mapping[str, Any]]:
        """The policies of a user or role; none if there is no such one."""
        kind, _, name = arn.rpartition(":")[2].partition("/")
        name = name.rpartition("/")[2]
        found: list[Any] = []
        for backend in self._backends:
            owners = backend.users.values() if kind == "user" else list(backend.roles.values())
            found += [one for one in owners if one.name == name]
        texts = [text for one in found for text in one.policies.values()]
        texts += [
            version.document
            for one in found
            for policy in one.managed_policies.values()
            for version in policy.versions
            if version.is_default
        ]
        return [_parsed(text) for text in texts]

    def decide(self, principal: str, action: str, resource: str, context: Context | None = None) -> Decision:
        """What the policies of a user or role say."""
        policies = self.policies_of(principal)
        return decide(policies, action, resource, context) if policies else "allowed"

    def denial(self, principal: str, action: str, resource: str, context: Context | None = None) -> str | None:
        """AWS's sentence if a user or role may not do something; None if it may."""
        decision = self.decide(principal, action, resource, context)
        if decision == "allowed":
            return None
        # S3 puts the resource in quotation marks.
        quoted = f'"{resource}"' if action.startswith("s3:") else resource
        why = (
            "with an explicit deny in an identity-based policy"
            if decision == "explicitDeny"
            else f"because no identity-based policy allows the {action} action"
        )
        return f"User: {session_arn(principal)} is not authorized to perform: {action} on resource: {quoted} {why}"


def session_arn(principal: str) -> str:
    """A user, or the session in which a service of AWS has taken a role."""
    *_, account, resource = principal.split(":")
    kind, _, name = resource.partition("/")
    if kind == "user":
        return principal
    return f"arn:{principal.split(':')[1]}:sts::{account}:assumed-role/{name.rpartition('/')[2]}/SageMaker"


class SimulatingResponse(IamResponse):
    """Answers SimulatePrincipalPolicy; moto answers the others."""

    def simulate_principal_policy(self) -> ActionResult:
        """SimulatePrincipalPolicy."""
        access, principal = Access(self.current_account), self._get_param("PolicySourceArn")
        entries = self._get_param("ContextEntries", [])
        context = {entry["ContextKeyName"]: entry["ContextKeyValues"][0] for entry in entries}
        results = [
            {
                "EvalActionName": action,
                "EvalResourceName": resource,
                "EvalDecision": access.decide(principal, action, resource, context),
                "MatchedStatements": [],
                "MissingContextValues": [],
            }
            for action in self._get_param("ActionNames")
            for resource in self._get_param("ResourceArns", ["*"])
        ]
        return ActionResult({"EvaluationResults": results, "IsTruncated": False})


def install_iam() -> None:
    """Replace moto's answers, in this process."""
    moto_urls.answer("iam", SimulatingResponse.dispatch)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(text)
    return found


def _covers(statement: Mapping[str, Any], action: str, resource: str, context: Context) -> bool:
    unknown = statement.keys() - ELEMENTS
    if unknown:
        raise NotImplementedError(f"{', '.join(unknown)} in a policy works on AWS, but is not rehearsed")
    return (
        # Names of actions are the same in capitals and small letters, ARNs are not.
        _names(statement, "Action", action.lower(), str.lower)
        and _names(statement, "Resource", resource, str)
        and all(
            _holds(operator, listed(wanted), context.get(key))
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _names(statement: Mapping[str, Any], element: str, text: str, fold: Any) -> bool:
    if element in statement:
        return any(_like(fold(one), text) for one in listed(statement[element]))
    return not any(_like(fold(one), text) for one in listed(statement[f"Not{element}"]))


def _holds(operator: str, wanted: list[Any], value: str | None) -> bool:
    values = [str(one).lower() if isinstance(one, bool) else str(one) for one in wanted]
    if operator == "Null":
        return (value is None) == (values == ["true"])
    # A request here has one value of each key.
    name = operator.removeprefix("ForAnyValue:").removesuffix("IfExists")
    negated, name = "Not" in name, name.replace("Not", "")
    if value is None:
        return operator.endswith("IfExists") or negated
    if name in ("StringEquals", "Bool"):
        found = value in values
    elif name == "StringEqualsIgnoreCase":
        found = value.lower() in [one.lower() for one in values]
    elif name in ("StringLike", "ArnLike", "ArnEquals"):
        found = any(_like(one, value) for one in values)
    else:
        raise NotImplementedError(f"{operator} in a policy works on AWS, but is not rehearsed")
    return found != negated


def listed(value: Any) -> list[Any]:
    """An element of a policy as a list: a single value may be there without one."""
    return value if isinstance(value, list) else [value]


def _like(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = (".*" if part == "*" else "." if part == "?" else re.escape(part) for part in re.split(r"([*?])", pattern))
    return re.compile("".join(parts), re.DOTALL)
