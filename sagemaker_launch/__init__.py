"""The launcher: the same module, config and search space as SageMaker jobs.

The names in `__all__` are what a script or notebook needs. Each is imported when it is first used, so `--help` stays
fast. Modules of this package import from each other, never from here: a job gets this file empty.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_MODULES = {
    "losses_plot": "sagemaker_launch.debugger.page",
    "report_job": "sagemaker_launch.debugger.report",
    "Services": "sagemaker_launch.endpoints.fleet",
    "delete_endpoint": "sagemaker_launch.endpoints.fleet",
    "model_of_run": "sagemaker_launch.endpoints.models",
    "photo_grid": "sagemaker_launch.endpoints.photo_grid",
    "deploy_model": "sagemaker_launch.endpoints.plan",
    "plan_endpoint": "sagemaker_launch.endpoints.plan",
    "answer_table": "sagemaker_launch.endpoints.query",
    "endpoint_target": "sagemaker_launch.endpoints.query",
    "query_photos": "sagemaker_launch.endpoints.query",
    "watch_job": "sagemaker_launch.jobs.follow",
    "plan_training": "sagemaker_launch.jobs.plan",
    "plan_tuning": "sagemaker_launch.jobs.plan",
    "start_job": "sagemaker_launch.jobs.plan",
    "Synchroniser": "sagemaker_launch.jobs.sync",
    "run_rehearsal": "sagemaker_launch.rehearse",
    "load_cloud": "sagemaker_launch.settings.cloud",
    "status_table": "sagemaker_launch.status",
}
"""Public name to the module that defines it."""

__all__ = sorted(_MODULES)

if TYPE_CHECKING:
    from sagemaker_launch.debugger.page import losses_plot as losses_plot
    from sagemaker_launch.debugger.report import report_job as report_job
    from sagemaker_launch.endpoints.fleet import Services as Services
    from sagemaker_launch.endpoints.fleet import delete_endpoint as delete_endpoint
    from sagemaker_launch.endpoints.models import model_of_run as model_of_run
    from sagemaker_launch.endpoints.photo_grid import photo_grid as photo_grid
    from sagemaker_launch.endpoints.plan import deploy_model as deploy_model
    from sagemaker_launch.endpoints.plan import plan_endpoint as plan_endpoint
    from sagemaker_launch.endpoints.query import answer_table as answer_table
    from sagemaker_launch.endpoints.query import endpoint_target as endpoint_target
    from sagemaker_launch.endpoints.query import query_photos as query_photos
    from sagemaker_launch.jobs.follow import watch_job as watch_job
    from sagemaker_launch.jobs.plan import plan_training as plan_training
    from sagemaker_launch.jobs.plan import plan_tuning as plan_tuning
    from sagemaker_launch.jobs.plan import start_job as start_job
    from sagemaker_launch.jobs.sync import Synchroniser as Synchroniser
    from sagemaker_launch.rehearse import run_rehearsal as run_rehearsal
    from sagemaker_launch.settings.cloud import load_cloud as load_cloud
    from sagemaker_launch.status import status_table as status_table
else:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)
