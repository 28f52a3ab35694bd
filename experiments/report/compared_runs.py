"""The finished runs that a report compares, of every origin: trials, single trainings, jobs in the cloud.

They are read from run folders, so a report needs no MLflow server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from experiments.config import (
    RunConfig,
    is_needed_to_repeat,
    is_own_in_job,
    noted_fields,
    option_text,
    override,
    to_flat,
)
from experiments.fields import fields_of
from experiments.runs.folder import FINGERPRINT, RunFolder
from experiments.study.claims import Holder
from experiments.study.study import INPUTS_SECONDS, metric_name, photo_facts, trial_folder, trial_seconds
from lightning_modules.metrics import VAL_LOSS


@dataclass(frozen=True)
class ComparedRun:
    """A finished run, with its duration and cost."""

    name: str
    origin: str
    """local, sagemaker or rehearsal."""
    metrics: Mapping[str, float]
    """Metrics of the best epoch, and of the test split if that was scored."""
    params: Mapping[str, str]
    minutes: float | None
    """From start to end, with waiting, and with the time that computing features took once for all trials."""
    machine: str = ""
    findings: Mapping[str, str] = field(default_factory=dict)
    """Findings of rules and the profiler, by their name."""
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Each metric by epoch."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Commit, Python, packages and machine."""
    study: str | None = None
    """The study of a trial."""
    trial: tuple[str, str] | None = None
    """Study and number of the trial that the run is or repeats."""
    folder: RunFolder | None = None
    """None for a trial that ran on another machine."""

    @property
    def usd(self) -> float | None:
        """Cost of a job at the list price; None for a run at home."""
        return self.metrics.get("usd")

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the photos that it was scored on: only runs with the same one can be compared."""
        return self.params.get(FINGERPRINT)


def runs_of_study(study: Study, config: RunConfig) -> list[ComparedRun]:
    """The complete trials of a study, also those of other machines."""
    name = study.study_name
    config = override(config, {"sweep.study_name": name})
    shared = study.user_attrs.get(INPUTS_SECONDS, 0.0) / 60
    runs = []
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        folder, label = trial_folder(config, trial.number), f"{name}, trial {trial.number}"
        ended_here = folder.outcome is not None and folder.outcome.state == "COMPLETE"
        run = _from_folder(folder, label) if ended_here else _from_trial(study, trial, label)
        minutes = None if run.minutes is None else run.minutes + shared
        runs.append(replace(run, study=name, trial=(name, str(trial.number)), minutes=minutes))
    return runs


def other_runs(config: RunConfig, fingerprints: set[str]) -> list[ComparedRun]:
    """The complete single trainings and jobs on the same photos, as far as they are on this machine."""
    return [run for run in _folders(config.output_dir) if run.fingerprint in fingerprints]


def _folders(output_dir: Path) -> Iterator[ComparedRun]:
    for pattern in ("train/*", "cloud/*"):
        for path in sorted(output_dir.glob(pattern)):
            folder = RunFolder(path)
            if folder.outcome is not None and folder.outcome.state == "COMPLETE":
                named = folder.read().name
                yield _from_folder(folder, named if pattern == "cloud/*" else f"{named} ({path.name})")


def _from_folder(folder: RunFolder, label: str) -> ComparedRun:
    record = folder.read()
    outcome, tags, params = record.outcome, record.tags, record.params
    assert outcome is not None, "a complete run has an outcome"
    findings = {name: text for name, text in params.items() if name.startswith("rule.") or name == "profile.verdict"}
    findings |= {name: status for name, status in tags.items() if name.startswith("debugger.")}
    # Older jobs reported their environment as facts.
    known = {**params, **tags}
    return ComparedRun(
        name=label,
        origin=tags.get("origin", "local"),
        metrics=outcome.metrics,
        params=params,
        minutes=record.duration_ms / 60_000,
        machine=params.get("cloud.instance_type") or tags.get("host", ""),
        findings=findings,
        curves=folder.curves(),
        environment={
            name: known[name]
            for name in (
                *("mlflow.source.git.commit", "python"),
                *sorted(key for key in known if key.startswith(("package.", "hardware."))),
            )
            if name in known
        },
        trial=(tags["study"], tags["trial"]) if {"study", "trial"} <= tags.keys() else None,
        folder=folder,
    )


def _from_trial(study: Study, trial: FrozenTrial, label: str) -> ComparedRun:
    numbers = {name: float(value) for name, value in trial.user_attrs.items() if isinstance(value, float)}
    metric = metric_name(study)
    assert trial.value is not None
    return ComparedRun(
        name=label,
        origin="local",
        metrics={metric: trial.value, **numbers},
        params={
            **{name: str(value) for name, value in {**study.user_attrs.get("config", {}), **trial.params}.items()},
            **photo_facts(study),
        },
        minutes=None if (seconds := trial_seconds(trial)) is None else seconds / 60,
        machine=Holder.of(trial.user_attrs).host,
        curves={metric: dict(trial.intermediate_values)},
    )


def best_run(runs: Sequence[ComparedRun], metric: str = VAL_LOSS, *, maximize: bool = False) -> ComparedRun | None:
    """The run with the best value of a metric; of equals the first."""
    scored = [run for run in runs if metric in run.metrics]
    choose = max if maximize else min
    return choose(scored, key=lambda run: run.metrics[metric], default=None)


def config_of(run: ComparedRun, at_home: RunConfig) -> RunConfig:
    """The config that repeats a run on this machine.

    Args:
        at_home: has the photos, weights and devices of this machine, in place of those of a job.
    """
    repeated = {name: value for name, value in noted_fields(run.params).items() if is_needed_to_repeat(name)}
    if run.origin != "local":
        repeated = {name: value for name, value in repeated.items() if not is_own_in_job(name)}
    return override(at_home, repeated)


def options_to_repeat(config: RunConfig, command: str) -> str:
    """The options with which a command repeats a run: the fields that it uses and that are not at their default.

    Args:
        command: as fields declare it, such as `train` or `cloud train`. The devices of a job are those of its machine.
    """
    default = to_flat(RunConfig())
    return " ".join(
        option_text(name, value)
        for name, value in to_flat(config).items()
        if value != default[name] and is_needed_to_repeat(name) and fields_of(RunConfig)[name].is_used_by([command])
    )


def location_options(config: Mapping[str, object]) -> str:
    """The options that say where the runs of a config are kept: experiment and output folder.

    Args:
        config: its fields, as `to_flat` or a study has them.
    """
    fields = {"tracking.experiment": config.get("tracking.experiment"), "output_dir": config.get("output_dir")}
    return " ".join(option_text(name, value) for name, value in fields.items() if value not in (None, "runs"))
