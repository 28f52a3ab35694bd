"""`trainer.profile`: what the profiler of a run is told, and to whom it tells its verdict."""

from __future__ import annotations

from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger

from experiments.config import RunConfig
from experiments.console import say
from experiments.data.inputs import open_decoded_once, precision, uses_features
from experiments.runs.folder import PROFILE
from lightning_modules.insight.profile_verdict import Settings
from lightning_modules.insight.profiler import StepProfiler


def step_profiler(config: RunConfig, output_dir: Path, logger: Logger) -> StepProfiler:
    """The callback that profiles a run of this config."""

    def tell(said: str) -> None:
        say(f"profile: {said}")
        logger.log_hyperparams({"profile.verdict": said})

    cached = uses_features(config)
    return StepProfiler(
        output_dir / PROFILE,
        settings=Settings(
            batch_size=config.data.batch_size,
            trainable=config.model.trainable,
            cache="features" if cached else "decoded" if open_decoded_once(config) else "none",
            precision=precision(config),
            compiled=config.trainer.compile is True and not cached,
        ),
        threads=0 if cached else config.data.num_workers or torch.get_num_threads(),
        tell=tell,
    )
