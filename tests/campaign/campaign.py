"""Runs cases of the campaign in this process, and judges them.

`python -m tests.campaign.campaign FOLDER [--scenarios …] [--faults …] [--sample P] [--seed N] [--minutes M] [--calls]`
runs cases and prints a table and each finding.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from botocore.exceptions import ClientError

from experiments.config import load_config, to_yaml
from experiments.runs.folder import RunFolder
from experiments.runs.scoring import Scores
from lightning_modules.export import write_export
from sagemaker_launch import cli
from sagemaker_launch.aws import client as aws
from sagemaker_launch.rehearse import VARIABLES, set_up_account
from sagemaker_launch.settings.cloud import load_cloud
from sagemaker_launch.shipping import shipment
from tests.bad_days import bad_day
from tests.campaign.account import STOPPED, Account
from tests.campaign.clock import Clock
from tests.campaign.faults import KINDS, Planted
from tests.campaign.scenarios import SCENARIOS, SCHEDULE, Scenario
from tests.cloud import as_administrator
from tests.conftest import REPOSITORY, own_flags, tiny
from tests.pictures import make_class_folders
from tests.unit.lightning_modules.test_export import BACKBONE, CLASS_NAMES, PREPROCESSING, tiny_network

CLOUD = REPOSITORY / "conf" / "cloud" / "rehearsal.yaml"
BUCKET, PREFIX = "experiments-rehearsal", "experiments"
OPTIONS = ("--max-parallel-jobs=100000", "--max-endpoint-instances=100000", "--rollout-speed=1e9", "--no-namespaces")
COMMAND = re.compile(r"\S*python\S* -m sagemaker_launch ([^`\n]+)")
CARRIED_OUT_SECONDS = 0.2
"""In which the service carries out a call whose command was interrupted."""
KEPT_ENDPOINTS = 6
"""The last endpoints, which cases that change nothing share."""
LAST_LINES = 5
"""Lines at the end of an output, which say what is running."""
INDEX = "ResourceGroupsTaggingAPI_20170126.GetResources"
UNKNOWN = "endpoints whose lease has expired may still run, and cost money"
"""The call that names expired endpoints, and what `delete --expired` says without its answer."""
Resources = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Ran:
    """What a command printed, and how it ended."""

    words: Sequence[str]
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All of it."""
        return self.out + self.err

    @property
    def last(self) -> str:
        """Its last lines."""
        return "\n".join(self.err.rstrip().splitlines()[-LAST_LINES:])

    @property
    def ending(self) -> bool:
        """Whether it printed how to stop or delete something."""
        return any(words[0] in ("stop", "delete") for words in self.commands)

    @property
    def commands(self) -> list[list[str]]:
        """The commands of ours that it printed."""
        return [shlex.split(found) for found in COMMAND.findall(self.text)]


@dataclass
class Finding:
    """A case that was not as it must be."""

    case: str
    what: list[str]
    ran: Ran

    def __str__(self) -> str:
        return "\n".join([f"--- {self.case}", *self.what, f"exit {self.ran.code}", self.ran.out, self.ran.err])


@dataclass(eq=False)
class Campaign:
    """A running service with a proxy in front of it."""

    home: Path
    account: Account
    day: Planted
    clock: Clock
    exports: tuple[Path, Path]
    photo: Path
    fields: list[str]
    secret: str
    number: int = 0
    output_dir: Path = Path()
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Cases by scenario, fault and result."""
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    """The calls of each scenario on a good day, by operation."""
    report: Callable[[str], object] = lambda _finding: None
    """Called with each finding."""
    _usable: set[tuple[str, ...]] = field(default_factory=set)

    def run(self, *words: str) -> Ran:
        """Run a command."""
        out, err = io.StringIO(), io.StringIO()
        given = [*own_flags(f"cloud {words[0]}", [*self.fields, f"--output_dir={self.output_dir}"]), *words[1:]]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main([words[0], *given])
            except KeyboardInterrupt:  # too late for the command, which had ended
                code = 130
        return Ran(words, code, out.getvalue(), err.getvalue())

    def do(self, *words: str) -> str:
        """Run a command on a good day."""
        self.day.plant(None)
        ran = self.run(*words)
        assert ran.code == 0, ran.text
        return ran.out

    def prepare(self, scenario: Scenario) -> Sequence[str]:
        """Make what a command needs; the command."""
        self._begin_folder()
        words = scenario.prepare(self)
        for folder in scenario.uploads:
            self.account.empty(BUCKET, f"{PREFIX}/{folder}")
        return words

    def try_scenario(
        self, name: str, kinds: Sequence[str], only: float = 1.0, seed: int = 0, until: float = math.inf
    ) -> None:
        """Plant faults at the first and at the last call of each operation of a command.

        Args:
            only: the share of cases that run.
            until: no case begins after this time of the monotonic clock, without the pauses of commands.
        """
        scenario, started = SCENARIOS[name], time.perf_counter()
        words = self.prepare(scenario)
        self._tidy()
        before = self.account.resources()
        good = self.run(*words)
        assert good.code == 0, good.text
        calls = self.calls[name] = Counter(self.day.calls)
        expected = Counter(kind for kind, _ in self.account.resources().keys() - before.keys())
        draw = random.Random(seed)
        for kind in kinds:
            for operation, count in sorted(calls.items()):
                if KINDS[kind].only not in operation:
                    continue
                for ordinal in sorted({1, count}):
                    if draw.random() < only and self.clock.real() < until:
                        self._try(name, scenario, words, kind, operation, ordinal, expected)
        self.seconds[name] = time.perf_counter() - started

    def _begin_folder(self) -> None:
        """Let the next command write into a folder of its own."""
        self.number += 1
        self.output_dir = self.home / f"runs-{self.number}"
        shutil.rmtree(self.home / f"runs-{self.number - 3}", ignore_errors=True)

    def _try(
        self,
        name: str,
        scenario: Scenario,
        words: Sequence[str],
        kind: str,
        operation: str,
        ordinal: int,
        expected: Counter[str],
    ) -> None:
        if scenario.is_shared:
            self._begin_folder()
        else:
            words = self.prepare(scenario)
        before = self.account.resources()
        self.day.plant(KINDS[kind], operation, ordinal)
        with self.day.resolving():
            try:
                ran = self.run(*words)
            except Exception as error:
                ran = Ran(words, -1, "", f"Traceback of the command itself: {error!r}")
        if "Ctrl-C" in kind:
            self.clock.wait(CARRIED_OUT_SECONDS)
        hits, done, reached = self.day.hits, list(self.day.done), self.day.calls[operation]
        if not hits:
            self._tidy()
            if 1 <= reached < ordinal:  # it polled less often this time
                self._try(name, scenario, words, kind, operation, reached, expected)
            else:
                self.counts[name, kind, "not reached"] += 1
            return
        after = self.account.resources()
        wrong = [*judge(scenario, f"c{self.number}", "Ctrl-C" in kind, ran, before, after, done, self.secret)]
        wrong += [problem for command in ran.commands if (problem := self._unusable(command))]
        # A command that has done its work is repeated now and then, all others always.
        if ran.code or (not scenario.is_shared and self.number % 5 == 0):
            wrong += self._repeat(words, scenario, before, expected)
        self._tidy()
        self.counts[name, kind, "wrong" if wrong else f"exit {ran.code}"] += 1
        if wrong:
            self.findings.append(Finding(f"{name}: {kind} at {operation} ({ordinal})", wrong, ran))
            self.report(str(self.findings[-1]))

    def _repeat(
        self, words: Sequence[str], scenario: Scenario, before: Resources, expected: Counter[str]
    ) -> Iterator[str]:
        """Run the same command on a good day; what is wrong then."""
        self.day.plant(None)
        again = self.run(*words)
        if again.code != 0:
            yield f"the same command fails afterwards: {again.last}"
        final = self.account.resources()
        made = Counter(resource for resource, _ in final.keys() - before.keys())
        if made != expected:
            yield f"after the same command there is {dict(made)}, on a good day {dict(expected)}"
        for (resource, name), state in final.items():
            if (
                resource not in scenario.ends
                and state in ("Failed", *STOPPED)
                and before.get((resource, name)) != state
            ):
                yield f"{resource} {name} became {state}"

    def _unusable(self, command: Sequence[str]) -> str:
        """Why a printed command can't be run as it is; empty if it can."""
        shape = (command[0], *(word for word in command if word.startswith("--")))
        if shape in self._usable:  # checking one takes as long as running a short command
            return ""
        parse, output = cli.parse, io.StringIO()

        def without_work(argv: Sequence[str]) -> Any:
            arguments, fields = parse(argv)
            arguments.command = lambda *_: None
            return arguments, fields

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cli, "parse", without_work)
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                try:
                    code = cli.main(list(command))
                except SystemExit as ended:
                    code = int(str(ended.code))
        if code:
            return f"the printed command {shlex.join(command)} is refused: {output.getvalue()}"
        self._usable.add(shape)
        return ""

    def _tidy(self) -> None:
        """Delete the endpoints of earlier cases and what belongs to them, which each case lists again."""
        self.day.plant(None)
        resources = self.account.resources()
        endpoints = [name for resource, name in resources if resource == "endpoint"]
        kept = tuple(f"{name}-" for name in endpoints[:KEPT_ENDPOINTS])
        for resource, name in resources:
            is_left = resource in ("config", "model") and not name.startswith(kept)
            if is_left or (resource == "endpoint" and name in endpoints[KEPT_ENDPOINTS:]):
                with contextlib.suppress(ClientError):  # it is changing: the next case tries again
                    self.account.delete(resource, name)

    def table(self) -> str:
        """Faults: how many cases, and of these how many ended with 0, with another code, and wrongly."""
        kinds = [kind for kind in KINDS if any(key[1] == kind for key in self.counts)]
        shown = [f"  {kind}: {self._results(1, kind)}" for kind in kinds]
        return "\n".join([*shown, f"  all: {sum(self.counts.values())}"])

    def row(self, name: str) -> str:
        """The same of a scenario."""
        calls = self.calls[name]
        size = f"{sum(calls.values())} calls of {len(calls)} operations"
        return f"{name}: {size}; {self._results(0, name)}; {self.seconds[name]:.0f} s"

    def _results(self, position: int, wanted: str) -> str:
        """The results of a scenario (position 0 of a key of `counts`) or of a fault (1)."""
        results: Counter[str] = Counter()
        for key, number in self.counts.items():
            if key[position] == wanted:
                results[key[2]] += number
        return ", ".join(f"{result}: {number}" for result, number in sorted(results.items()))


def is_deleted_by(name: str, words: Sequence[str]) -> bool:
    """Whether a command deletes what belongs to an endpoint; that it does so is seen when the command is run."""
    return words[0] == "delete" and words[1] in re.split(r"[-~/]", name)


def judge(
    scenario: Scenario,
    case: str,
    is_interrupted: bool,
    ran: Ran,
    before: Resources,
    after: Resources,
    done: Sequence[str],
    secret: str,
) -> Iterator[str]:
    """What is wrong with what a command said and left."""
    if ran.code not in ((0, 130) if is_interrupted else (0, 1)):
        yield f"it ends with {ran.code}"
    if "Traceback" in ran.text or "was not expected here" in ran.text:
        yield "it prints a traceback"
    if secret in ran.text:
        yield "it prints a secret"
    if ran.code == 1 and ran.words[0] == "status" and "the list is not complete" not in ran.last:
        yield "the last lines do not say that more may run than was listed"
    if ran.code == 1 and not ran.err.strip():
        yield "it ends without a word"
    for (resource, name), state in after.items():
        old = before.get((resource, name))
        is_asked = resource in scenario.ends and (name in ran.words or name == case)
        if old == state and not is_asked:
            continue
        if old is None and name not in ran.text and not any(is_deleted_by(name, words) for words in ran.commands):
            yield f"{resource} {name} ({state}) is not named"
        if old is None and state in ("Failed", *STOPPED):
            yield f"{resource} {name} is {state}"
        costs = state == "InProgress" or (resource == "endpoint" and (old is None or is_asked))
        if not ran.code or not costs:
            continue
        if INDEX not in done and UNKNOWN in ran.last and "--expired" in ran.words:
            continue
        if name not in ran.last:
            yield f"the last lines do not say that {resource} {name} ({state}) keeps running"
        elif not scenario.ends and ("$" not in ran.last or not ran.ending):
            yield f"the last lines do not say what {resource} {name} costs and how to end it"
    for (resource, name), state in before.items():
        if resource in scenario.ends:
            continue
        is_said = resource == "scaling" and f"endpoint {name} may not scale" in ran.text
        if (resource, name) not in after and not is_said:
            yield f"{resource} {name} ({state}) was deleted"
        elif state == "InProgress" and after.get((resource, name)) in STOPPED:
            yield f"{resource} {name} was stopped"
    if "SageMaker.CreateEndpoint" in done and "SageMaker.DeleteEndpoint" in done:
        yield "the healthy endpoint was deleted"


@contextmanager
def campaign(folder: Path) -> Iterator[Campaign]:
    """Start a service, a proxy and a clock."""
    home = folder.resolve()
    home.mkdir(parents=True, exist_ok=True)
    exports = make_export(home / "export-1", 1), make_export(home / "export-2", 2)
    photos = make_class_folders(home / "photos", classes=3, per_class={"train": 1, "valid": 1, "test": 1}, size=24)
    prepared = home / "prepared"
    shutil.copytree(exports[0], prepared / "model")
    (prepared / "data").mkdir()
    save_scores(photos, prepared / "data" / RunFolder(home).scores.name)
    preset = home / "preset.yaml"
    values = tiny(photos, home) | {"sweep.n_trials": 2, "tracking.experiment": "campaign"}
    preset.write_text(to_yaml(load_config(None, values)))
    with service(prepared, home / "rehearsal") as environment, pytest.MonkeyPatch.context() as patch:
        administrator = as_administrator(environment)
        account, clock = Account(administrator), Clock()
        day = Planted(clock=clock)
        schedule_role = {"endpoint.schedule_role_arn": SCHEDULE.partition("=")[2]}
        set_up_account(load_cloud(CLOUD, schedule_role), None, administrator)
        leave_out(patch)
        with bad_day(environment["AWS_ENDPOINT_URL"], day=day), clock.installed():
            for name, value in {**environment, "AWS_ENDPOINT_URL": day.address}.items():
                patch.setenv(name, value)
            fields = [f"--config={preset}", f"--cloud={CLOUD}"]
            photo = next(photos.glob("test/*/*"))
            yield Campaign(home, account, day, clock, exports, photo, fields, environment["AWS_SECRET_ACCESS_KEY"])


@contextmanager
def service(prepared: Path, root: Path) -> Iterator[Mapping[str, str]]:
    """Run `tests.campaign.service`; its environment."""
    command = [sys.executable, "-m", "tests.campaign.service", str(prepared), "--root", str(root), "--until-eof"]
    process = subprocess.Popen(
        [*command, *OPTIONS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        said = [line.removeprefix("export ").rstrip("\n").split("=", 1) for line in islice(process.stdout, VARIABLES)]
        yield {pair[0]: pair[1] for pair in said}
    finally:
        process.terminate()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class NoStore:
    """MLflow is the subject of other tests."""

    uri = "none"

    def push_or_wait(self, *_: object) -> str:
        return "run"

    def wait(self, call: Any, *_: object) -> Any:
        return call()

    def find_complete(self, *_: object) -> set[Path]:
        return set()


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long and calls nothing in AWS: MLflow, pictures, a training at home, smdebug, parsing."""
    nothing: dict[str, Any] = {"modes": {}, "tensors": {}, "losses": {}}
    stand_ins: dict[str, Any] = {
        "experiments.tracking.store.RunStore.open_or_wait": lambda _config: NoStore(),
        "sagemaker_launch.jobs.sync.draw_once": lambda _path: None,
        "sagemaker_launch.jobs.parity.train_at_home": lambda _config, job, _overrides: job,
        "sagemaker_launch.jobs.parity.write_parity": lambda *_: (Path("parity.html"), None),
        "sagemaker_launch.debugger.report._judge": lambda *_: (nothing, []),
        "sagemaker_launch.debugger.report.write_report": lambda *given: given[-1].parent.mkdir(exist_ok=True) or [],
        "sagemaker_launch.endpoints.plan._check": lambda _model: "which was not checked",
        "sagemaker_launch.shipping.shipment.make_bundle": functools.cache(shipment.make_bundle),
    }
    for name, stand_in in stand_ins.items():
        patch.setattr(name, stand_in)
    for name in ("load_config", "load_cloud"):
        patch.setattr(cli, name, once_per_arguments(getattr(cli, name)))
    patch.setattr(aws, "client", once_per_arguments(aws.client))


def once_per_arguments(function: Any) -> Any:
    """A function whose results are kept by the text of its arguments."""
    kept: dict[str, Any] = {}

    def keeping(*given: Any, **named: Any) -> Any:
        key = f"{given} {sorted(named.items())}"
        if key not in kept:
            kept[key] = function(*given, **named)
        return kept[key]

    return keeping


def make_export(folder: Path, seed: int) -> Path:
    """An export whose scores are its own."""
    network = tiny_network()
    torch.manual_seed(seed)
    torch.nn.init.normal_(network.fc.weight, std=0.05)
    pictures = folder.parent / "golden"
    if not pictures.exists():
        make_class_folders(pictures, classes=3, per_class={"train": 1, "valid": 1, "test": 1}, size=24)
    return write_export(
        network,
        folder,
        backbone=BACKBONE,
        class_names=CLASS_NAMES,
        preprocessing=PREPROCESSING,
        metrics={"val_loss": 0.5},
        data={},
        config={},
        golden_photos=[next(pictures.glob("test/*/*"))],
    )


def save_scores(photos: Path, path: Path) -> None:
    """The scores that a job leaves."""
    paths = tuple(photo.relative_to(photos) for photo in sorted(photos.glob("valid/*/*")))
    rows = np.log(np.full((len(paths), 3), 1 / 3))
    Scores(photos, paths, np.zeros(len(paths), int), rows, CLASS_NAMES).save(path)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--faults", nargs="*", default=list(KINDS))
    parser.add_argument("--sample", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no case after this time")
    parser.add_argument("--calls", action="store_true", help="print the calls of each scenario")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    with campaign(arguments.folder) as running:
        running.report = functools.partial(print, flush=True)
        until = running.clock.real() + arguments.minutes * 60
        for name in arguments.scenarios:
            running.try_scenario(name, arguments.faults, arguments.sample, arguments.seed, until)
            print(running.row(name), flush=True)
            if arguments.calls:
                print(json.dumps(running.calls[name], indent=1))
        print(running.table())


if __name__ == "__main__":
    main()
