"""An evaluator that we did not write judges the printed policies: @cloud-copilot/iam-simulate.

It knows AWS's service authorization reference: actions, resource types, condition keys.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_modules.locks import KernelLock
from sagemaker_launch.rehearsal.authorization import Check, checks
from sagemaker_launch.rehearsal.iam import decide
from tests.conftest import REPOSITORY
from tests.iam_calls import ACCOUNT, ALLOWED, DENIED_CALLS, POLICIES, Account

pytestmark = pytest.mark.slow
SOURCE = REPOSITORY / "tests" / "iam_judge"
FILES = ("judge.mjs", "package.json", "package-lock.json")
NODE = 20
"""Major version of Node from which the package runs."""
UNREACHABLE = re.compile(r"ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|ENETUNREACH|E40[34]")
"""What npm says when no registry answers."""
DECISIONS = {"Allowed": "allowed", "ImplicitlyDenied": "implicitDeny", "ExplicitlyDenied": "explicitDeny"}
DOCUMENTS = {name: policy for name, policy in POLICIES.items() if not name.endswith("_trust")}


def node() -> str:
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("iam-simulate needs Node and npm")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").split(".")[0]) < NODE:
        pytest.skip(f"iam-simulate needs Node {NODE}, found {version.strip()}")
    return found


@pytest.fixture(scope="module")
def judge() -> list[str]:
    """The command of the judge, installed once per version of its files."""
    command = node()
    digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in FILES)).hexdigest()[:12]
    folder = (REPOSITORY / ".venv" / f"iam-judge-{digest}").resolve()
    with KernelLock(Path(f"{folder}.lock")):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in FILES:
                shutil.copyfile(SOURCE / name, folder / name)
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode and UNREACHABLE.search(done.stderr):
                pytest.skip("iam-simulate is not installed, and no npm registry answers")
            assert done.returncode == 0, done.stderr
            (folder / "complete").touch()
    return [command, str(folder / "judge.mjs")]


def ask(judge: list[str], asked: list[tuple[str, Check]], policies: Mapping[str, Any]) -> dict[str, Any]:
    request = {
        "policies": policies,
        "principal": f"arn:aws:iam::{ACCOUNT}:user/somebody",
        "checks": [
            {
                "policy": name,
                "action": check.action,
                "resource": check.resource,
                "account": ACCOUNT,
                "context": dict(check.context),
            }
            for name, check in asked
        ],
    }
    done = subprocess.run(judge, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_both_evaluators_agree_about_every_call(judge: list[str]) -> None:
    allowed = [(caller, check) for caller, found in ALLOWED.items() for check in found]
    denied = [
        (caller, check) for caller, calls in DENIED_CALLS.items() for one in calls for check in checks(one, Account())
    ]
    # Of each allowed check also the one without what a condition may ask for.
    bare = [(caller, Check(check.action, check.resource)) for caller, check in allowed if check.context]
    pairs = [*allowed, *denied, *bare]
    answer = ask(judge, pairs, DOCUMENTS)
    different = []
    for (caller, check), found in zip(pairs, answer["decisions"], strict=True):
        ours = decide([POLICIES[caller]], check.action, check.resource, check.context)
        if found["errors"] or DECISIONS[found["decision"]] != ours:
            different.append((caller, check, ours, found))
    assert not different, "\n".join(map(str, different))
    decisions = Counter(found["decision"] for found in answer["decisions"])
    assert decisions["Allowed"] > 190 and decisions["ImplicitlyDenied"] > 90


def test_every_action_resource_and_condition_key_is_one_of_awss(judge: list[str]) -> None:
    assert ask(judge, [], DOCUMENTS)["unknown"] == []


def test_the_judge_sees_what_is_wrong(judge: list[str]) -> None:
    wrong = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["sagemaker:CreateTrainingJobs", "s3:GetObject"],
                "Resource": ["*"],
                "Condition": {"StringEquals": {"s3:prefix": "x"}},
            }
        ],
    }
    check = Check("s3:GetObject", "arn:aws:sagemaker:us-east-1:123456789012:endpoint/x")
    answer = ask(judge, [("wrong", check)], {"wrong": wrong})
    assert answer["unknown"] == [
        "wrong: there is no action sagemaker:CreateTrainingJobs",
        "wrong: s3:GetObject knows no condition key s3:prefix",
    ]
    assert answer["decisions"][0]["errors"], "no resource of that action"
