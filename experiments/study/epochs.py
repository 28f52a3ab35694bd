"""Resolve the fields that a config leaves open, once, before a study or a training begins."""

from __future__ import annotations

import math
from types import MappingProxyType

from experiments.config import RunConfig, override, require, with_recipe
from experiments.console import say
from experiments.study.search_space import SearchSpace, extremes

EPOCHS = "trainer.max_epochs"
NO_SPACE: SearchSpace = MappingProxyType({})


def train_longer(best_epoch: int, max_epochs: int) -> str:
    """The advice for a run whose best epoch is its last one; empty for any other run."""
    if best_epoch < max_epochs:
        return ""
    return f"the best epoch is the last one, {max_epochs}: train longer, such as with --{EPOCHS} {2 * max_epochs}"


def resolve_config(config: RunConfig, space: SearchSpace = NO_SPACE) -> RunConfig:
    """The config as a study, a run or a job records it: with the sizes of photos and the number of epochs.

    Args:
        space: what a study searches.

    Raises:
        UserError: for an unknown backbone; if the number of epochs is not set and the photos are in S3.
    """
    return with_max_epochs(with_recipe(config, drawn=space), space)


def with_max_epochs(config: RunConfig, space: SearchSpace = NO_SPACE) -> RunConfig:
    """The config with `trainer.max_epochs` set, which pruner, schedule, resumed runs and jobs read.

    A search space that tunes it decides: a study's number is the most that a trial can draw. Else the number that is
    set decides. Else it is the fewest epochs that take `trainer.min_steps` steps of the config's own batch size, so
    that trials with other batch sizes train for as many epochs.

    Args:
        space: what a study searches.

    Raises:
        UserError: if it is not set and the photos are in S3, so that they can't be counted here.
    """
    if EPOCHS in space:
        return override(config, {EPOCHS: max(int(value) for value in extremes(space[EPOCHS]))})
    if config.trainer.max_epochs is not None:
        return config
    rule = "be set where data.root is in S3: its photos are not counted"
    require(not str(config.data.root).startswith("s3:/"), "trainer.max_epochs", rule, config.trainer.max_epochs)
    from experiments.data.inputs import open_data_once  # imports torch

    images = len(open_data_once(config).train)
    together = config.data.batch_size * config.trainer.devices * config.trainer.num_nodes
    steps = math.ceil(images / together)
    epochs = math.ceil(config.trainer.min_steps / steps)
    of = f"{epochs * steps:,} steps of {together} images"
    say(f"{EPOCHS} {epochs}: {of}, for trainer.min_steps {config.trainer.min_steps:,}")
    return override(config, {EPOCHS: epochs})
