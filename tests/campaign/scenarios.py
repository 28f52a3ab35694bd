"""The commands of the campaign, and what must exist before each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.campaign.account import Account

SCRIPT = "--cloud.endpoint.image_uri=rehearsal.local/serving"
SCHEDULE = "--cloud.endpoint.schedule_role_arn=arn:aws:iam::123456789012:role/scheduler"
SCALING = ("--cloud.endpoint.max_instances=2", "--cloud.endpoint.budget_usd_per_hour=100")


class Case(Protocol):
    """One run of a scenario."""

    number: int
    account: Account
    exports: tuple[Path, Path]
    photo: Path

    def do(self, *words: str) -> str:
        """Run a command on a good day; what it printed on standard output."""
        ...


@dataclass(frozen=True)
class Scenario:
    """A command.

    Args:
        prepare: makes what the command needs, and returns the command.
        is_shared: it changes nothing, so it is prepared once for all cases.
        uploads: folders in the bucket whose files it sends again.
        ends: types of resources that the command is asked to end; their names begin as the case's.
    """

    prepare: Callable[[Case], Sequence[str]]
    is_shared: bool = False
    uploads: tuple[str, ...] = ("code/", "data/", "models/")
    ends: tuple[str, ...] = ()


def job(case: Case, *words: str) -> str:
    """Start a job; its name."""
    return case.do(*words, f"--seed={case.number}", "--no-wait").strip().rpartition("/")[2]


def ended(case: Case, *words: str) -> str:
    """Run a job; its name."""
    return case.do(*words, f"--seed={case.number}").strip().rpartition("/")[2]


@functools.cache
def tuned(case: Case) -> str:
    """The tuning job that all cases share."""
    return ended(case, "tune")


def name(case: Case) -> str:
    return f"c{case.number}"


def endpoint(case: Case, *words: str, of: str = "") -> str:
    case.do("deploy", of or name(case), "--model", str(case.exports[0]), SCRIPT, *words)
    return of or name(case)


def deploy(*words: str) -> Callable[[Case], Sequence[str]]:
    return lambda case: ["deploy", name(case), "--model", str(case.exports[0]), SCRIPT, *words]


def train(case: Case) -> Sequence[str]:
    return ["train", f"--seed={case.number}"]


def train_no_wait(case: Case) -> Sequence[str]:
    return ["train", f"--seed={case.number}", "--no-wait"]


def train_found(case: Case) -> Sequence[str]:
    job(case, "train")
    return train(case)


def train_best_of(case: Case) -> Sequence[str]:
    return ["train", "--best-of", tuned(case), f"--seed={case.number}", "--no-wait"]


def tune(case: Case) -> Sequence[str]:
    return ["tune", f"--seed={case.number}"]


def sync(case: Case) -> Sequence[str]:
    return ["sync", ended(case, "tune"), ended(case, "train"), "--models"]


def sync_all(case: Case) -> Sequence[str]:
    ended(case, "train")
    return ["sync"]


def parity(case: Case) -> Sequence[str]:
    return ["parity", ended(case, "train")]


def debug_report(case: Case) -> Sequence[str]:
    return ["debug-report", ended(case, "train", "--debug")]


def status(case: Case) -> Sequence[str]:
    job(case, "train"), job(case, "tune"), endpoint(case)
    return ["status"]


def cost(case: Case) -> Sequence[str]:
    ended(case, "train"), ended(case, "tune")
    return ["cost"]


def stop(case: Case) -> Sequence[str]:
    return ["stop", job(case, "tune"), job(case, "train")]


def deploy_best_of(case: Case) -> Sequence[str]:
    return ["deploy", name(case), "--best-of", tuned(case), SCRIPT]


def update(case: Case) -> Sequence[str]:
    endpoint(case, SCHEDULE, *SCALING)
    return ["deploy", name(case), "--model", str(case.exports[1]), SCRIPT, SCHEDULE, *SCALING]


def renew(case: Case) -> Sequence[str]:
    endpoint(case, SCHEDULE, *SCALING)
    return ["deploy", name(case), "--model", str(case.exports[0]), SCRIPT, SCHEDULE, *SCALING, "--ttl=8h"]


def query(case: Case) -> Sequence[str]:
    return ["query", endpoint(case), str(case.photo)]


def query_async(case: Case) -> Sequence[str]:
    return ["query", endpoint(case, "--cloud.endpoint.kind=async"), str(case.photo)]


def delete(case: Case) -> Sequence[str]:
    endpoint(case, SCHEDULE, *SCALING)
    endpoint(case, of=f"{name(case)}b")
    return ["delete", name(case), f"{name(case)}b"]


def delete_expired(case: Case) -> Sequence[str]:
    found = case.account.sagemaker.describe_endpoint(EndpointName=endpoint(case, SCHEDULE))
    past = [{"Key": "expires", "Value": "2026-01-01T00:00:00Z"}]
    case.account.sagemaker.add_tags(ResourceArn=found["EndpointArn"], Tags=past)
    return ["delete", "--expired"]


ENDPOINT = ("endpoint", "config", "model", "alarm", "schedule", "scaling")
SCENARIOS = {
    "sync (all)": Scenario(sync_all, is_shared=True),
    "status": Scenario(status, is_shared=True),
    "cost": Scenario(cost, is_shared=True),
    "train": Scenario(train),
    "train --no-wait": Scenario(train_no_wait),
    "train (found)": Scenario(train_found),
    "train --best-of": Scenario(train_best_of, uploads=("code/",)),
    "tune": Scenario(tune),
    "stop": Scenario(stop, ends=("training job", "tuning job")),
    "sync": Scenario(sync, is_shared=True),
    "parity": Scenario(parity, is_shared=True),
    "debug-report": Scenario(debug_report, is_shared=True),
    "deploy": Scenario(deploy(SCHEDULE, *SCALING)),
    "deploy --best-of": Scenario(deploy_best_of),
    "deploy (async)": Scenario(deploy("--cloud.endpoint.kind=async", "--cloud.endpoint.min_instances=0")),
    "deploy (serverless)": Scenario(deploy("--cloud.endpoint.kind=serverless")),
    "deploy (update)": Scenario(update, ends=("config", "model")),
    "deploy (renew)": Scenario(renew),
    "query": Scenario(query, is_shared=True),
    "query (async)": Scenario(query_async, is_shared=True),
    "delete": Scenario(delete, ends=ENDPOINT),
    "delete --expired": Scenario(delete_expired, ends=ENDPOINT),
}
