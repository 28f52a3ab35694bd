"""Which parameters of a study its report ranks."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution

from experiments.report.study_plots import rankable_parameters

DISTRIBUTIONS = {
    "optimizer.learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "data.batch_size": CategoricalDistribution((32, 64)),
}


def study_of(values: Sequence[float]) -> optuna.Study:
    """A study with a complete trial for each value."""
    study = optuna.create_study()
    for number, value in enumerate(values):
        params = {"optimizer.learning_rate": (1e-4, 1e-3, 1e-2)[number % 3], "data.batch_size": (32, 64)[number % 2]}
        study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=DISTRIBUTIONS))
    return study


def test_importance_needs_a_best_tenth_that_differs() -> None:
    # The tenth of 20 trials is bounded by the second best, which here is also the worst.
    assert rankable_parameters(study_of([0.1, *[0.5] * 19])) == []
    assert rankable_parameters(study_of([0.1, 0.2, *[0.5] * 18])) != []


def test_a_parameter_that_was_drawn_once_from_a_range_is_not_ranked() -> None:
    study = study_of([0.9, 0.5, 0.7, 0.6])
    study.add_trial(
        optuna.trial.create_trial(
            value=0.8,
            params={"optimizer.learning_rate": 0.5, "data.batch_size": 64},
            distributions=DISTRIBUTIONS | {"optimizer.learning_rate": FloatDistribution(0.1, 1.0)},
        )
    )
    assert rankable_parameters(study) == ["data.batch_size"]
