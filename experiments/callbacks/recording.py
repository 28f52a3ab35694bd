"""`trainer.record`: the recorder of a run, and where its findings are printed and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pytorch_lightning.loggers import Logger

from experiments.callbacks.history import History
from experiments.console import say
from experiments.runs.folder import RECORDING
from lightning_modules.insight.recorder import Recorder
from lightning_modules.insight.recording import Finding
from lightning_modules.insight.rules import NOT_FINITE


def new_recorder(
    detail: Literal["light", "full"],
    on_rule: Literal["warn", "stop"],
    output_dir: Path,
    logger: Logger,
    history: History,
) -> Recorder:
    """A recorder that prints the findings of its rules, and records them with the run.

    Args:
        on_rule: `stop` ends training too.
        history: is told of a loss that is no number, where that ends training.
    """

    def tell(finding: Finding) -> None:
        say(f"rule {finding.rule}: {finding.message}")
        logger.log_hyperparams({f"rule.{finding.rule}": finding.message})
        if on_rule == "stop" and finding.rule == NOT_FINITE:
            history.failure = finding.message

    return Recorder(output_dir / RECORDING, detail=detail, on_finding=tell, stop=on_rule == "stop")
