"""Config, search space, data sets, `train()`, the sweep, tracking, reports and the command line.

The names in `__all__` are what a script or notebook needs. Each is imported when it is first used, so `--help` stays
fast. Modules of this package import from each other, never from here: a job gets this file empty.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_MODULES = {
    "RunConfig": "experiments.config",
    "load_config": "experiments.config",
    "override": "experiments.config",
    "tracking_uri": "experiments.config",
    "quiet_libraries": "experiments.console",
    "open_data": "experiments.data.datasets",
    "learning_curves_figure": "experiments.figures.run_figures",
    "thumbnail": "experiments.figures.pictures",
    "RunFolder": "experiments.runs.folder",
    "metric_text": "experiments.runs.intervals",
    "load_search_space": "experiments.study.search_space",
    "run_sweep": "experiments.sweep",
    "PHASES": "lightning_modules.insight.profile_verdict",
    "load_findings": "lightning_modules.insight.recording",
}
"""Public name to the module that defines it."""

__all__ = sorted(_MODULES)

if TYPE_CHECKING:
    from experiments.config import RunConfig as RunConfig
    from experiments.config import load_config as load_config
    from experiments.config import override as override
    from experiments.config import tracking_uri as tracking_uri
    from experiments.console import quiet_libraries as quiet_libraries
    from experiments.data.datasets import open_data as open_data
    from experiments.figures.pictures import thumbnail as thumbnail
    from experiments.figures.run_figures import learning_curves_figure as learning_curves_figure
    from experiments.runs.folder import RunFolder as RunFolder
    from experiments.runs.intervals import metric_text as metric_text
    from experiments.study.search_space import load_search_space as load_search_space
    from experiments.sweep import run_sweep as run_sweep
    from lightning_modules.insight.profile_verdict import PHASES as PHASES
    from lightning_modules.insight.recording import load_findings as load_findings
else:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)
