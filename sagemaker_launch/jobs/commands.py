"""The commands about jobs: tune, train, sync, stop, parity."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from experiments.config import RunConfig, override
from experiments.console import invocation, say
from experiments.errors import CommandError
from sagemaker_launch.settings.cloud import CloudSettings

if TYPE_CHECKING:
    from experiments.study.search_space import SearchSpace
    from sagemaker_launch.jobs.found import FoundJob
    from sagemaker_launch.jobs.launch import Launched
    from sagemaker_launch.jobs.plan import JobPlan

Add = Callable[[str, object, str], argparse.ArgumentParser]
"""Adds a command: its name, the function that runs it, and its help."""


def add_job_commands(add: Add) -> None:
    """Add the commands and their options."""
    tune = add("tune", _tune, "Search as a tuning job; the same command finds the job that it started before.")
    tune.add_argument(
        "--from-study", metavar="STUDY", help="only in the range of the best quarter of a local study's trials"
    )
    train = add("train", _train, "Train one model as a training job.")
    source = train.add_mutually_exclusive_group()
    source.add_argument("--best-of", metavar="TUNING_JOB", help="with the settings of its best training job")
    source.add_argument("--from-study", metavar="STUDY", help="with the settings of a local study's best trial")
    for command in (tune, train):
        command.add_argument("--dry-run", action="store_true", help="print the request as JSON and start nothing")
        command.add_argument("--no-wait", action="store_true", help="do not watch the job")
        command.add_argument("--again", action="store_true", help="start another job although one is complete")
        text = "let SageMaker Debugger watch the job (accounts that had it before 2026-07-30; not in tuning jobs)"
        command.add_argument("--debug", dest="debugger.enabled", action="store_const", const="true", help=text)
        text = "keep losses, weights and gradients by the project's own recorder (--trainer.record light)"
        command.add_argument("--recorder", action="store_true", help=text)
    sync = add("sync", _sync, "Bring jobs and their metrics into MLflow; again and again, nothing is doubled.")
    sync.add_argument("jobs", nargs="*", metavar="JOB", help="by default all that this project has made")
    sync.set_defaults(more="jobs")
    sync.add_argument("--models", action="store_true", help="fetch the best model of each")
    stop = add("stop", _stop, "Stop jobs.")
    stop.add_argument("jobs", nargs="+", metavar="JOB")
    stop.set_defaults(more="jobs")


def add_parity_command(add: Add) -> None:
    """Add the command and its options."""
    parity = add("parity", _parity, "Train the config and seed of a job at home, and compare the two runs.")
    parity.add_argument("job", metavar="JOB", help="a training job, or one of a tuning job")
    parity.add_argument("--run", metavar="FOLDER_OR_RUN_ID", help="compare with this run instead of training one")


def _tune(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from experiments.study.search_space import check_against, study_space
    from sagemaker_launch.jobs.plan import plan_tuning

    space = study_space(config)
    check_against(space, config)
    if arguments.from_study:
        space = _narrowed(config, space, arguments.from_study)
    _start_and_watch(settings, plan_tuning(settings, config, space), arguments)


def _train(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.jobs.plan import plan_training

    channels = None
    if arguments.from_study:
        from experiments.study.study import best_config, load_study  # imports Optuna

        best, trial = best_config(load_study(config, arguments.from_study), config)
        say(f"trial {trial.number} of study {arguments.from_study}: {config.sweep.metric} {trial.value:.4f}")
        config = override(best, arguments.overrides)
    elif arguments.best_of:
        from sagemaker_launch.aws.client import client
        from sagemaker_launch.aws.resources import TRAINING, tags_of
        from sagemaker_launch.jobs.found import best_training_job
        from sagemaker_launch.jobs.repeat import channels_of, config_for_another_job, experiment_of

        sagemaker = client("sagemaker", settings)
        described = best_training_job(sagemaker, arguments.best_of)
        channels = channels_of(described)
        overrides = dict(arguments.overrides)
        if not arguments.names_experiment:
            tags = tags_of(sagemaker, described[TRAINING.arn], described["CreationTime"])
            overrides["tracking.experiment"] = experiment_of(tags, config)
        config = config_for_another_job(config, described, overrides)
        say(f"settings, photos and weights of {described['TrainingJobName']}, the best of {arguments.best_of}")
    _start_and_watch(settings, plan_training(settings, config, channels=channels), arguments)


def _start_and_watch(settings: CloudSettings, plan: JobPlan, arguments: argparse.Namespace) -> None:
    """Print the cost of a job, start it, and watch it."""
    from sagemaker_launch.aws.readback import ProtectionError
    from sagemaker_launch.aws.resources import TUNING, LaunchError
    from sagemaker_launch.aws.running import Running, keeps_running
    from sagemaker_launch.jobs.follow import JobFailedError, TimeLimitError, watch_job
    from sagemaker_launch.jobs.launch import checkpoint_folder, job_name
    from sagemaker_launch.jobs.plan import start_job

    say(plan.worst.table())
    if arguments.dry_run:
        name = job_name(plan.label, plan.build, 1)
        print(json.dumps(plan.build(name, checkpoint_folder(name, 0)), indent=2))
        return
    plan.worst.check_budget(settings)

    def command(word: str, name: str) -> str:
        return invocation("sagemaker_launch", word, name, *arguments.passed_on(word, plan.label))

    def commands(name: str) -> Mapping[str, str]:
        same = f"the same {'tune' if plan.job_type is TUNING else 'train'} command"
        if arguments.again:  # it would start another job after the end of this one
            same = f"{same} without --again"
        return {f"{same} watches it again; its results": command("sync", name), "to end it": command("stop", name)}

    at_once = settings.max_parallel_jobs if plan.job_type is TUNING else 1
    running = Running(at_once * plan.worst.usd_per_hour, commands)

    def exists(job: Launched) -> None:
        if job.is_running:
            running.exists(job.name)
        say(f"{job.job_type.word} {job.name} {'was there before' if job.found else 'is started'}")
        print(job.arn)

    ended_by = (JobFailedError, TimeLimitError, LaunchError, ProtectionError)
    with keeps_running(running, ended_by=ended_by):
        job = start_job(settings, plan, again=arguments.again, starts=running.starts, exists=exists)
        for difference in job.differences:
            say(f"warning: {difference}")
        if job.differences:
            say(f"{job.name} keeps running; if this is not what you want, end it: {command('stop', job.name)}")
        if arguments.no_wait:
            say(f"its results: {command('sync', job.name)}")
            return
        watch_job(settings, job, plan.worst.usd_per_hour)
    say(f"bring it into MLflow: {command('sync', job.name)}")


def _sync(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.aws.logs import failure_reason
    from sagemaker_launch.aws.resources import tags_of
    from sagemaker_launch.aws.tag_index import TAGGING
    from sagemaker_launch.jobs.found import find_job, job_tags, project_jobs
    from sagemaker_launch.jobs.repeat import experiment_of
    from sagemaker_launch.jobs.sync import Synchroniser

    sagemaker = client("sagemaker", settings)
    found: Iterable[tuple[FoundJob, Mapping[str, str]]]
    if arguments.jobs:
        named = [find_job(sagemaker, name) for name in arguments.jobs]
        found = (
            (job, {} if arguments.names_experiment else tags_of(sagemaker, job.arn, job.described["CreationTime"]))
            for job in named
        )
    else:
        own = list(project_jobs(sagemaker, job_tags(sagemaker, client(TAGGING, settings), settings)))
        found = ((job.describe(sagemaker), job.tags) for job in own)
    synchronisers: dict[str, Synchroniser] = {}
    for job, tags in found:
        experiment = config.tracking.experiment if arguments.names_experiment else experiment_of(tags, config)
        if experiment not in synchronisers:
            there = override(config, {"tracking.experiment": experiment})
            synchronisers[experiment] = Synchroniser.open(settings, there)
        folders = synchronisers[experiment].sync(job, models=arguments.models)
        reason = f" ({failure_reason(job.described).splitlines()[0]})" if job.status == "Failed" else ""
        print(f"{job.name}: {job.status}{reason}, {len(folders)} runs in MLflow experiment '{experiment}'")
    if missing := [name for synchroniser in synchronisers.values() for name in synchroniser.missing_models]:
        raise CommandError(f"models that could not be fetched: {', '.join(missing)}; everything else is synchronised")


def _stop(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    del config
    from sagemaker_launch.aws.client import client
    from sagemaker_launch.aws.retries import WHILE_RUNNING_SECONDS
    from sagemaker_launch.aws.running import end_each
    from sagemaker_launch.jobs.found import ENDED, find_job

    sagemaker = client("sagemaker", settings, patience_seconds=WHILE_RUNNING_SECONDS)

    def stop(name: str) -> str:
        job = find_job(sagemaker, name)
        if job.status not in ENDED:
            job.job_type.stop(sagemaker, name)
        return f"{name}: {job.status if job.status in ENDED else 'Stopping'}"

    end_each(arguments.jobs, stop)


def _parity(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.jobs.parity import compare_with_home

    found, page = compare_with_home(settings, config, arguments.job, arguments.overrides, arguments.run)
    print(found.verdict)
    print(found.packages)
    print(page)


def _narrowed(config: RunConfig, space: SearchSpace, name: str) -> SearchSpace:
    from experiments.study.narrowing import describe, narrow_by_study
    from experiments.study.study import load_study

    smaller = narrow_by_study(space, load_study(config, name))
    say(f"range of the best quarter of the complete trials of study {name}:\n{describe(space, smaller)}")
    return smaller
