"""The command about Debugger: debug-report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.config import RunConfig
from sagemaker_launch.settings.cloud import CloudSettings

if TYPE_CHECKING:
    from sagemaker_launch.jobs.commands import Add


def add_debug_command(add: Add) -> None:
    """Add the command and its options."""
    report = add(
        "debug-report", _debug_report, "Draw and judge what SageMaker Debugger saved of a job, or of a folder."
    )
    report.add_argument("job", metavar="JOB_OR_FOLDER", help="a training job, or a folder of tensors")


def _debug_report(settings: CloudSettings, config: RunConfig, arguments: argparse.Namespace) -> None:
    from sagemaker_launch.debugger.report import report_folder, report_job
    from sagemaker_launch.jobs.sync import Synchroniser

    if Path(arguments.job).is_dir():
        print(report_folder(config, Path(arguments.job)))
    else:
        print(report_job(config, arguments.job, Synchroniser.open(settings, config)))
