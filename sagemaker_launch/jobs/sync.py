"""Copy cloud jobs to MLflow: each becomes a run folder, as at home, and run folders are published to MLflow.

A tuning job is the parent of its training jobs. Runs are found by their ARN, so a repeated call changes nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from experiments.config import RunConfig
from experiments.console import progress, say
from experiments.data.datasets import photo_root
from experiments.runs.folder import Outcome, RunFolder
from experiments.study.search_space import SEARCHED
from experiments.tracking.drawers import draw_once
from experiments.tracking.store import RunStore
from lightning_modules import metrics
from sagemaker_launch.aws import client as aws
from sagemaker_launch.aws.logs import LogLine, failure_reason, job_log
from sagemaker_launch.aws.prices import price_finder
from sagemaker_launch.aws.resources import TRAINING, TUNING
from sagemaker_launch.container.hyperparameters import decode, unquoted
from sagemaker_launch.container.machines import run_folder_name
from sagemaker_launch.container.metric_lines import ReportedLine, parse_lines
from sagemaker_launch.jobs.found import ENDED, TIME_LIMITS, FoundJob, children, find_job, milliseconds, seconds
from sagemaker_launch.jobs.repeat import WEIGHTS_PARAM, channel_uris
from sagemaker_launch.settings.cloud import CloudSettings
from sagemaker_launch.shipping.archive import BadArchiveError, fetch_model
from sagemaker_launch.shipping.download import fetch_folder, fetch_scores

OUTCOMES: Mapping[str, Any] = {"Completed": "COMPLETE", "Failed": "FAIL", "Stopped": "STOPPED"}
Report = tuple[int, ReportedLine]
"""Lines of a job's log and their times, in milliseconds since 1970."""
LOG_DELAY_SECONDS = 600.0
"""Seconds that the last lines of an ended job may take to reach CloudWatch."""
RULE_DELAY_SECONDS = 1800.0
"""Seconds that Debugger's rules may run after the end of their job."""
LOG_TAG, LOG_MISSING = "log", "missing"
"""Tag of the run of a job whose log did not reach CloudWatch in time, or is deleted there."""
POLL_SECONDS = 30.0
"""Seconds between two checks after a job's end; shorter for a rehearsal."""


class Synchroniser:
    """Copies jobs of one account into one MLflow experiment.

    Args:
        usd_per_hour: price of a machine by its instance type.
    """

    def __init__(
        self, config: RunConfig, sagemaker: Any, logs: Any, s3: Any, usd_per_hour: Callable[[str], float]
    ) -> None:
        self.sagemaker, self._logs, self.s3 = sagemaker, logs, s3
        self._usd_per_hour = usd_per_hour
        self._home = config.output_dir / "cloud"
        self._photo_root = photo_root(config.data)
        self._store = RunStore.open_or_wait(config)
        self._said: set[str] = set()
        self._whole: set[Path] = set()
        """Folders of jobs that were published completely when this sync began."""
        self.missing_models: list[str] = []
        """Jobs whose models could not be fetched."""

    @classmethod
    def open(cls, settings: CloudSettings, config: RunConfig) -> Synchroniser:
        """A synchroniser with clients and prices of the settings' account and region."""
        sagemaker, logs, s3 = (aws.client(name, settings) for name in ("sagemaker", "logs", "s3"))
        return cls(config, sagemaker, logs, s3, price_finder(settings, aws.region(settings)))

    def sync_ended(self, name: str, *, models: bool = False) -> list[RunFolder]:
        """`sync` an ended job until its log and the findings of rules are complete, which may be after its end."""
        while True:
            folders = self.sync(find_job(self.sagemaker, name), models=models)
            if all(folder.outcome is not None for folder in folders):
                return folders
            time.sleep(1.0 if aws.is_rehearsal(self.sagemaker) else POLL_SECONDS)

    def sync(self, job: FoundJob, *, models: bool = False) -> list[RunFolder]:
        """Bring MLflow up to date with a job and, for a tuning job, with its training jobs.

        Args:
            models: fetch the model of a training job, or of the best one of a tuning job.

        Returns:
            The run folders, the parent's first.
        """
        if job.job_type is TRAINING:
            self._whole = self._find_whole([job.name])
            folder = self._training_job(job.name, job.described, {}, models=models, described=job.described)
            self._push(folder)
            return [folder]
        parent = self._tuning_job(job)
        parent_run_id = self._store.push_or_wait(parent)
        folders = [parent]
        best = job.described.get("BestTrainingJob", {}).get("TrainingJobName")
        listed = children(self.sagemaker, job.name)
        self._whole = self._find_whole([summary["TrainingJobName"] for summary in listed])
        with progress("sync", len(listed), "job") as advance:
            for summary in listed:
                name = summary["TrainingJobName"]
                tags = {"tuning_job": job.name}
                folder = self._training_job(name, summary, tags, models=models and name == best)
                self._push(folder, parent_run_id)
                folders.append(folder)
                advance(1)
        if job.status in ENDED and parent.outcome is None and all(folder.outcome for folder in folders[1:]):
            self._finish_search(parent, job.described, {folder.path.name: folder for folder in folders[1:]})
            self._push(parent)
        return folders

    def _find_whole(self, names: Sequence[str]) -> set[Path]:
        folders = [RunFolder(self._home / name) for name in names]
        existing = [folder for folder in folders if folder.has_started]
        return self._store.wait(lambda: self._store.find_complete(existing), RunFolder(self._home))

    def _push(self, folder: RunFolder, parent_run_id: str | None = None) -> None:
        if folder.path not in self._whole or not folder.is_published:
            self._store.push_or_wait(folder, parent_run_id)

    def _tuning_job(self, job: FoundJob) -> RunFolder:
        """Start the run folder of a tuning job."""
        described = job.described
        folder = self._folder(f"{job.name}/tuning", described[TUNING.arn], described["CreationTime"])
        if not folder.has_started:
            tuning = described["HyperParameterTuningJobConfig"]
            params = {
                "cloud.strategy": tuning["Strategy"],
                "cloud.max_parallel_jobs": tuning["ResourceLimits"]["MaxParallelTrainingJobs"],
                "sweep.n_trials": tuning["ResourceLimits"]["MaxNumberOfTrainingJobs"],
                **_machine(described["TrainingJobDefinition"]),
                **_as_at_home(decode(described["TrainingJobDefinition"]["StaticHyperParameters"])),
            }
            params |= {f"{SEARCHED}{name}": text for name, text in _ranges(tuning["ParameterRanges"]).items()}
            self._start_folder(folder, job.name, params, described[TUNING.arn], described["CreationTime"], {})
        return folder

    def _finish_search(self, parent: RunFolder, described: Mapping[str, Any], jobs: Mapping[str, RunFolder]) -> None:
        """Write the outcome of a tuning job: metrics of its best job, as for a search at home, and the total cost."""
        outcomes = {name: folder.outcome for name, folder in jobs.items() if folder.outcome is not None}
        best = outcomes.get(described.get("BestTrainingJob", {}).get("TrainingJobName", ""))
        found = {"usd": sum(outcome.metrics["usd"] for outcome in outcomes.values())}
        if best is not None:
            found |= metrics.summary(best.metrics)
        ended = described.get("HyperParameterTuningEndTime") or described["LastModifiedTime"]
        status = described[TUNING.status]
        state, reason = OUTCOMES[status], failure_reason(described) if status == "Failed" else ""
        parent.finish(Outcome(state, best.value if best else None, found, reason), ended_ms=milliseconds(ended))

    def _training_job(
        self,
        name: str,
        summary: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        models: bool,
        described: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """Write the run folder of a training job: facts, metrics and outcome.

        Args:
            described: AWS's description; None asks for it if it is needed.
        """
        folder = self._folder(name, summary[TRAINING.arn], summary["CreationTime"])
        record = folder.read() if folder.has_started else None
        lacks_log = record is not None and record.tags.get(LOG_TAG) == LOG_MISSING
        ended = record is not None and record.outcome is not None
        if ended and not lacks_log and (folder.export.is_dir() or not models):
            return folder  # it can't change any more
        described = described or TRAINING.describe(self.sagemaker, name)
        params = {**_as_at_home(decode(described["HyperParameters"])), **_machine(described)}
        if weights := channel_uris(described).get("weights"):
            params[WEIGHTS_PARAM] = weights
        if not folder.has_started:
            self._start_folder(folder, name, params, described[TRAINING.arn], described["CreationTime"], tags)
        log = job_log(self._logs, name)
        lines = log.read()
        reported = [(line.timestamp_ms, parsed) for line in lines for parsed in parse_lines([line.text])]
        _note(folder, reported)
        if lacks_log and _is_whole(described, reported):
            folder.add_tags({LOG_TAG: "complete"})
            folder.reopen()
        if folder.outcome is None and described[TRAINING.status] in ENDED and not self._lags(described, reported):
            _write_log(folder, lines)
            _note_rules(folder, described)
            self._fetch_artifacts(folder, described)
            reason = ""
            if described[TRAINING.status] == "Failed":
                reason = failure_reason(described, log.last_lines)
                say(f"{name} failed: {reason}")
            elif described.get("SecondaryStatus") in TIME_LIMITS:
                reason = f"stopped at {TIME_LIMITS[described['SecondaryStatus']][0]}"
            if not _is_whole(described, reported):
                reported += _final_values(described)
                folder.add_tags({LOG_TAG: LOG_MISSING})
            folder.finish(self._outcome(described, reported, reason), ended_ms=milliseconds(_ended(described)))
        if models and described[TRAINING.status] == "Completed" and not folder.export.is_dir():
            self._fetch_model(folder, described)
        elif models and described[TRAINING.status] == "Stopped":
            say(f"{name} was stopped: it has left no model")
        return folder

    def _fetch_model(self, folder: RunFolder, described: Mapping[str, Any]) -> None:
        """Download the model of a job, or note that it is missing."""
        uri, reason = described.get("ModelArtifacts", {}).get("S3ModelArtifacts"), "AWS names no archive"
        try:
            if uri is not None:
                fetch_model(self.s3, uri, folder.export)
                self._draw_scores(folder, described)
                return
        except (ClientError, BadArchiveError) as error:
            reason = str(error)
        self.missing_models.append(described[TRAINING.name])
        say(f"the model of {described[TRAINING.name]} could not be fetched: {reason}")

    def _draw_scores(self, folder: RunFolder, described: Mapping[str, Any]) -> None:
        """Draw the scores of a job like those of a run at home, with the photos of this machine."""
        output = described["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        try:
            fetch_scores(
                self.s3, f"{output}/{described[TRAINING.name]}/output/output.tar.gz", folder.scores, self._photo_root
            )
        except ValueError as error:
            say(f"{described[TRAINING.name]} has no pictures: {error}")
            return
        draw_once(folder.path)

    def _lags(self, described: Mapping[str, Any], reported: list[Report]) -> bool:
        """Whether a part of an ended job is missing and may still arrive; printed once."""
        late = _late(described, reported)
        if late and late not in self._said:
            self._said.add(late)
            say(f"{late}: run sync again in a minute")
        return bool(late)

    def _fetch_artifacts(self, folder: RunFolder, described: Mapping[str, Any]) -> None:
        """Download the recording of a job, and draw it like that of a run at home."""
        sent = decode(described["HyperParameters"])
        # Jobs of older versions have neither field.
        if sent.get("trainer.record", "none") == "none" and sent.get("trainer.profile", "false").lower() == "false":
            return
        checkpoint_uri = described["CheckpointConfig"]["S3Uri"].rstrip("/")
        name = described[TRAINING.name]
        # Jobs of older versions have a folder by their whole name.
        run = name if checkpoint_uri.endswith(f"/{name}") else run_folder_name(name)
        fetch_folder(self.s3, f"{checkpoint_uri}/{run}/{folder.artifacts.name}", folder.artifacts)
        if folder.needs_drawing:
            draw_once(folder.path)

    def _start_folder(
        self,
        folder: RunFolder,
        name: str,
        params: Mapping[str, object],
        arn: str,
        created: datetime,
        tags: Mapping[str, str],
    ) -> None:
        tags = {"origin": aws.origin(self.sagemaker), "arn": arn, "job": name, **tags}
        folder.start(name, params, tags, key=_key(arn, created), started_ms=milliseconds(created))

    def _folder(self, name: str, arn: str, created: datetime) -> RunFolder:
        """The run folder of a job. A folder of another rehearsal with this name was published, and is moved away."""
        folder = RunFolder(self._home / name)
        if folder.has_started and folder.read().key != _key(arn, created):
            shutil.rmtree(folder.path)
        return folder

    def _outcome(self, described: Mapping[str, Any], reported: list[Report], reason: str) -> Outcome:
        """The outcome of a job, with the metrics of its best epoch and its cost."""
        status = described[TRAINING.status]
        values = {
            "training_seconds": float(described.get("TrainingTimeInSeconds", 0)),
            "billable_seconds": seconds(described),
        }
        if values["training_seconds"]:
            values["spot_saving"] = 1 - described["BillableTimeInSeconds"] / values["training_seconds"]
        resources = described["ResourceConfig"]
        price = self._usd_per_hour(resources["InstanceType"])
        values["usd"] = values["billable_seconds"] / 3600 * resources["InstanceCount"] * price
        best: dict[str, float] = {}
        scored: dict[str, float] = {}
        for _, line in reported:
            best |= {name: line.metrics[shown] for shown, name in metrics.SUMMARY.items() if shown in line.metrics}
            if (
                line.topic == "outcome"
            ):  # of the exported network; jobs of older versions report no validation metrics in it
                scored |= {name: value for name, value in line.metrics.items() if name not in metrics.SUMMARY}
        value = best.get(decode(described["HyperParameters"])["sweep.metric"])
        return Outcome(OUTCOMES[status], value, best | scored | values, reason)


def _note(folder: RunFolder, reported: list[Report]) -> None:
    """Write the epochs, facts and environment that a job has reported so far into its run folder."""
    facts: dict[str, str] = {}
    environment: dict[str, str] = {}
    for timestamp_ms, line in reported:
        if line.topic == "environment":
            environment |= line.facts
        else:
            facts |= line.facts
        if line.topic == "metrics":
            values = {key: value for key, value in line.metrics.items() if key not in metrics.SUMMARY}
            folder.record(line.epoch, values, timestamp_ms=timestamp_ms)
    record = folder.read()
    if not facts.items() <= record.params.items():
        folder.add_params(facts)
    if not environment.items() <= record.tags.items():
        folder.add_tags(environment)


def _as_at_home(sent: Mapping[str, str]) -> dict[str, str]:
    """Convert values to the text of runs at home, so that MLflow shows true and True as equal."""
    noted = {}
    for name, text in sent.items():
        try:
            noted[name] = str(json.loads(text))
        except ValueError:  # text
            noted[name] = text
    return noted


def _key(arn: str, created: datetime) -> str:
    """The key of a job's run. AWS never reuses an ARN, but each rehearsal does."""
    return f"{arn}@{milliseconds(created)}"


def _machine(definition: Mapping[str, Any]) -> dict[str, object]:
    resources = definition["ResourceConfig"]
    return {
        "cloud.instance_type": resources["InstanceType"],
        "cloud.instance_count": resources["InstanceCount"],
        "cloud.spot": definition.get("EnableManagedSpotTraining", False),
        "cloud.max_runtime_seconds": definition["StoppingCondition"]["MaxRuntimeInSeconds"],
    }


def _ranges(ranges: Mapping[str, Any]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for listed in ranges.values():
        for parameter in listed:
            (name,) = decode({parameter["Name"]: ""})
            shown = {key: value for key, value in parameter.items() if key != "Name"}
            if "Values" in shown:
                shown["Values"] = [unquoted(value) for value in shown["Values"]]
            texts[name] = str(shown)
    return texts


def rule_statuses(described: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Findings of Debugger's rules in a training job so far, those of its profiler last."""
    fields = ("DebugRuleEvaluationStatuses", "ProfilerRuleEvaluationStatuses")
    return [status for name in fields for status in described.get(name) or ()]


def _note_rules(folder: RunFolder, described: Mapping[str, Any]) -> None:
    """Tag a run with the findings of Debugger's rules, before its outcome is written."""
    tags = {}
    for rule in rule_statuses(described):
        name, status = rule["RuleConfigurationName"], rule["RuleEvaluationStatus"]
        tags[f"debugger.{name}"] = status
        if status != "NoIssuesFound":
            say(f"{described['TrainingJobName']}: {name}: {status} {rule.get('StatusDetails', '')}".rstrip())
    folder.add_tags(tags)


def _late(described: Mapping[str, Any], reported: list[Report]) -> str:
    """The part of an ended job that is missing and may still arrive; empty if nothing is missing."""
    seconds_since = (datetime.now(UTC) - _ended(described)).total_seconds()
    whole = _is_whole(described, reported)
    judged = all(rule["RuleEvaluationStatus"] not in ("InProgress", "Stopping") for rule in rule_statuses(described))
    log_lags = not whole and seconds_since < LOG_DELAY_SECONDS
    rules_lag = not judged and seconds_since < RULE_DELAY_SECONDS
    if not (log_lags or rules_lag):
        return ""
    late = "its log is not yet" if log_lags else "Debugger's rules are still evaluated"
    return f"{described['TrainingJobName']} is {described[TRAINING.status]}, {late}"


def _is_whole(described: Mapping[str, Any], reported: list[Report]) -> bool:
    """Whether the log of an ended job is here to its end."""
    return described[TRAINING.status] != "Completed" or any(line.topic == "outcome" for _, line in reported)


def _final_values(described: Mapping[str, Any]) -> list[Report]:
    """The last values of a job whose log is gone, as AWS has kept them."""
    final = {entry["MetricName"]: float(entry["Value"]) for entry in described.get("FinalMetricDataList") or ()}
    counted = {name for name in final if name in metrics.SUMMARY or name.startswith(("val_", "test_"))}
    missing = ", ".join(name for name in metrics.SUMMARY if name not in counted)
    say(f"the log of {described[TRAINING.name]} is gone: its epochs are missing, its final values are those of AWS")
    if missing:
        say(f"AWS does not have {missing} of it. If the log comes late, run sync again")
    values = {name: final[name] for name in counted}
    return [(milliseconds(_ended(described)), ReportedLine("outcome", metrics=values))]


def _write_log(folder: RunFolder, lines: list[LogLine]) -> None:
    folder.artifacts.mkdir(parents=True, exist_ok=True)
    (folder.artifacts / "log.txt").write_text("".join(f"{line.text}\n" for line in lines), encoding="utf-8")


def _ended(described: Mapping[str, Any]) -> Any:
    return described.get("TrainingEndTime") or described["LastModifiedTime"]
