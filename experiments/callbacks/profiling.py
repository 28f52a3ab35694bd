"""`trainer.profile`: the profiler of a run, and where its verdict is printed and recorded."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.loggers import Logger

from experiments.console import say
from experiments.runs.folder import PROFILE
from lightning_modules.insight.profile_verdict import Settings
from lightning_modules.insight.profiler import StepProfiler


def step_profiler(settings: Settings, threads: int, output_dir: Path, logger: Logger) -> StepProfiler:
    """The callback that profiles a run.

    Args:
        settings: what its advice depends on.
        threads: number of threads that load batches.
    """

    def tell(verdict: str) -> None:
        say(f"profile: {verdict}")
        logger.log_hyperparams({"profile.verdict": verdict})

    return StepProfiler(output_dir / PROFILE, settings=settings, threads=threads, tell=tell)
