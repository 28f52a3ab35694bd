"""How a trial's point is chosen, and what a sampler learns from the trials before it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, GridSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from experiments.config import RunConfig
from experiments.study.optuna_private import ChangedStudy, CheckedCmaEs
from experiments.study.search_space import SearchSpace, grid_points

START_UP = 10
"""Trials that CMA-ES draws at random before it begins; TPE and the Gaussian process do so too, by Optuna's defaults."""
GP_CEILING = 10.0
"""Multiple of the best loss that counts as the worst: beside one of 1e6, a Gaussian process can't tell 0.7 from 0.8."""


GP_TRIALS = 200
"""Trials that the Gaussian process chooses by default: it takes 0.1 s for the 200th, and 0.4 s for the 400th."""


def sampler_name(config: RunConfig, number: int = 0) -> str:
    """The sampler of a trial: that of `sweep.sampler`, or else the one that needs the fewest epochs."""
    if config.sweep.sampler is not None:
        return config.sweep.sampler
    return "gp" if config.sweep.population > 1 and number < GP_TRIALS else "tpe"


def make_sampler(study: Study, config: RunConfig, space: SearchSpace, number: int) -> BaseSampler:
    """The sampler that draws the point of trial `number`.

    It is seeded by the trial's number: a study that was interrupted draws what it would have drawn, and workers that
    ask at once draw different points.
    """
    name, seed = sampler_name(config, number), (config.seed * 100_003 + number) % 2**32
    if name == "grid":
        return _Grid(grid_points(space), seed=config.seed)
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "gp":
        return LearnsFromPruned(GPSampler(seed=seed), ceiling=GP_CEILING)
    if name == "cmaes":
        return LearnsFromPruned(_cmaes(study, seed))
    # Trials that are still running count as bad ones, or points that are drawn at once would be neighbours.
    return LearnsFromPruned(TPESampler(seed=seed, constant_liar=True))


def _cmaes(study: Study, seed: int) -> CheckedCmaEs:
    """CMA-ES that begins at the best start-up trial: in the middle, where Optuna's begins, all trials may diverge.

    It draws numbers only; choices are drawn at random.
    """
    trials = map(_as_complete, study.get_trials(deepcopy=False))
    told = [trial for trial in trials if trial.state == TrialState.COMPLETE][:START_UP]
    choose = min if study.direction == StudyDirection.MINIMIZE else max
    start = choose(told, key=_value).params if len(told) == START_UP else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will not take x0
        return CheckedCmaEs(x0=start, n_startup_trials=START_UP, seed=seed, warn_independent_sampling=False)


class _Grid(GridSampler):
    """Lets `n_trials` end the study: Optuna's own class stops `optimize()`, which is not used here."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


class LearnsFromPruned(BaseSampler):
    """Shows pruned trials to a sampler as complete ones, with their told value.

    Optuna's Gaussian process and CMA-ES learn from complete trials only: they would not learn from trials that diverge,
    and draw at random for as long as a pruner leaves few others. TPE ranks a pruned trial by its last epoch before its
    value: the best of them would be one that diverged in its last epoch.

    Args:
        sampler: the sampler that learns.
        ceiling: multiple of the best loss that counts as the worst.
    """

    def __init__(self, sampler: BaseSampler, *, ceiling: float = math.inf) -> None:
        self._sampler, self._ceiling = sampler, ceiling

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The search space that the sampler draws jointly."""
        return self._sampler.infer_relative_search_space(self._seen(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw these parameters jointly."""
        return self._sampler.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a single parameter."""
        return self._sampler.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call the sampler's own hook."""
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Call the sampler's own hook."""
        self._sampler.after_trial(study, trial, state, values)

    def _seen(self, study: Study) -> Any:
        def change(trials: list[FrozenTrial]) -> list[FrozenTrial]:
            trials = [_as_complete(trial) for trial in trials]
            if study.direction != StudyDirection.MINIMIZE:
                return trials
            losses = [_value(trial) for trial in trials if trial.state == TrialState.COMPLETE]
            worst = self._ceiling * min(losses, default=math.inf)
            return [_with_value(trial, worst) if trial.values and _value(trial) > worst else trial for trial in trials]

        return ChangedStudy(study, change)


def _as_complete(trial: FrozenTrial) -> FrozenTrial:
    if trial.state != TrialState.PRUNED or trial.values is None:
        return trial
    complete = copy.copy(trial)
    complete.state = TrialState.COMPLETE
    return complete


def _with_value(trial: FrozenTrial, value: float) -> FrozenTrial:
    other = copy.copy(trial)
    other.value = value
    return other


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value
