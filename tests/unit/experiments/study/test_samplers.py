"""What samplers draw, and what they learn from trials that diverged or were pruned. Nothing is trained here."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.samplers import EPOCHS, NARROW, WIDE, Diverges, diverging_share, gap, search
from experiments.config import RunConfig, override
from experiments.errors import UserError
from experiments.runs.folder import Outcome
from experiments.study.samplers import START_UP, sampler_name
from experiments.study.study import make_pruner, open_study
from experiments.study.trials import claim_trial, diverged_outcome, suggest, tell
from tests.harmful import TouchesAFile
from tests.unit.experiments.study.test_study import (
    GRID,
    PHOTOS,
    SPACE,
    finish,
    make_config,
    objective,
    run_trials,
    sqlite,
)


@pytest.mark.parametrize(
    ("name", "sampler", "trials"),
    [("random", RandomSampler, 4), ("tpe", TPESampler, 13), ("gp", GPSampler, 12)],
)
def test_one_process_draws_what_optunas_own_sampler_draws(
    tmp_path: Path, name: str, sampler: type[BaseSampler], trials: int
) -> None:
    config = make_config(tmp_path, sampler=name, n_trials=trials)
    points = run_trials(config, SPACE, trials)
    study = optuna.create_study()
    for number, point in enumerate(points):
        study.sampler = sampler(seed=number)  # type: ignore[call-arg]
        trial = study.ask()
        assert suggest(trial, SPACE) == point
        study.tell(trial, objective(point))


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "grid"])
def test_two_machines_that_ask_at_once_draw_different_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    space = GRID if sampler == "grid" else SPACE
    here, there = (make_config(tmp_path / name, sampler=sampler, storage=sqlite(tmp_path)) for name in ("a", "b"))
    study, target = open_study(here, space, PHOTOS)
    other, _ = open_study(there, space, PHOTOS)
    ask, found = optuna.Study.ask, []

    def ask_after_the_other(asking: optuna.Study, *arguments: Any) -> optuna.Trial:
        with monkeypatch.context() as once:
            once.setattr(optuna.Study, "ask", ask)
            found.append(claim_trial(other, there, space, target))
        return ask(asking, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", ask_after_the_other)
        found.append(claim_trial(study, here, space, target))
    first, second = found
    assert {first.trial.number, second.trial.number} == {0, 1}
    assert first.point != second.point
    for machine_study, claimed in ((other, first), (study, second)):
        finish(machine_study, claimed)
        machine_study._storage.remove_session()


# Trials that diverge


def test_a_diverged_trial_gets_the_worst_finite_loss_and_at_least_that_of_guessing() -> None:
    study = optuna.create_study()
    assert diverged_outcome(study, "val_loss", 10, "why") == Outcome("PRUNED", math.log(10), reason="why")
    trial = study.ask()
    for epoch, loss in enumerate((5.5, math.inf, math.nan), start=1):
        trial.report(loss, epoch)
    assert diverged_outcome(study, "val_loss", 10, "why").value == 5.5
    assert diverged_outcome(study, "val_accuracy", 10, "why").value == 0.0


def test_a_diverged_trial_is_told_as_pruned_with_its_value_once() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.report(0.7, 1)
    tell(study, trial, Outcome("PRUNED", 2.5, reason="diverged at epoch 2: val_loss is nan"))
    [told] = study.trials
    assert (told.state, told.value, told.intermediate_values) == (TrialState.PRUNED, 2.5, {1: 0.7, 2: 2.5})
    assert told.user_attrs["failure_reason"] == "diverged at epoch 2: val_loss is nan"


@pytest.mark.parametrize(
    ("sampler", "pruner", "diverges", "seeds"),
    [
        *((name, "none", "first epoch", 4) for name in ("tpe", "cmaes")),
        *((name, "hyperband", "first epoch", 4) for name in ("tpe", "cmaes")),
        *((name, "hyperband", "last epoch", 4) for name in ("tpe", "cmaes")),
        ("gp", "none", "first epoch", 1),
        ("gp", "hyperband", "last epoch", 1),
    ],
)
def test_a_sampler_learns_to_keep_away_from_what_diverges(
    sampler: str, pruner: str, diverges: Diverges, seeds: int
) -> None:
    config = override(RunConfig(), {"sweep.sampler": sampler, "sweep.pruner": pruner, "trainer.max_epochs": EPOCHS})
    shares = []
    for seed in range(seeds):
        study = search(override(config, {"seed": seed}), WIDE, diverges=diverges, trials=40)
        shares.append(diverging_share(study.trials[20:]))
    assert np.mean(shares) <= 0.25


def test_one_huge_loss_spoils_no_gaussian_process() -> None:
    config = override(RunConfig(), {"sweep.sampler": "gp", "trainer.max_epochs": EPOCHS})
    study = search(config, WIDE, diverges="huge loss", trials=25)
    assert diverging_share(study.trials[15:]) <= 0.25
    assert gap(study) < 0.01


# The state of CMA-ES, which Optuna stores as a pickle

STATE = "cma:optimizer:0"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The file of a study whose CMA-ES has stored its state."""
    config = make_config(tmp_path / "runs", sampler="cmaes", n_trials=40)
    run_trials(config, SPACE, 2 * START_UP + 4)
    return tmp_path / "runs" / "studies" / config.sweep.study_name / "journal.log"


def next_trial(tmp_path: Path) -> Any:
    """What another process claims in that study."""
    config = make_config(tmp_path / "runs", sampler="cmaes", n_trials=40)
    study, target = open_study(config, SPACE, PHOTOS)
    return claim_trial(study, config, SPACE, target)


def test_cmaes_continues_from_the_state_that_the_study_has(journal: Path, tmp_path: Path) -> None:
    assert STATE in journal.read_text()
    assert next_trial(tmp_path).trial.storage.get_trial(24).system_attrs["cma:generation"] >= 1


@pytest.mark.parametrize("content", ["code", "class", "torn"])
def test_a_pickle_in_a_study_runs_no_code(content: str, journal: Path, tmp_path: Path) -> None:
    harm = TouchesAFile(tmp_path / "mark") if content == "code" else RandomSampler()
    text = "80049" if content == "torn" else pickle.dumps(harm).hex()
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        values = entry.get("system_attr", {})
        values |= {name: text if name == STATE else "" for name in values if name.startswith("cma:optimizer")}
    journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    with pytest.raises(UserError, match=r"must find the state of CMA-ES in trial \d+, which has none that is safe"):
        next_trial(tmp_path)
    assert not (tmp_path / "mark").exists()
    if content == "code":
        pickle.loads(bytes.fromhex(text))
        assert (tmp_path / "mark").exists(), "it would have done harm"


# Trials that are pruned


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("gp", NopPruner), ("cmaes", NopPruner), ("tpe", HyperbandPruner), ("random", HyperbandPruner)],
)
def test_a_sampler_that_wants_whole_trials_has_no_pruner_unless_it_is_named(sampler: str, kind: type) -> None:
    config = override(RunConfig(), {"sweep.sampler": sampler, "trainer.max_epochs": EPOCHS})
    assert type(make_pruner(config)) is kind
    assert type(make_pruner(override(config, {"sweep.pruner": "hyperband"}))) is HyperbandPruner


@pytest.mark.parametrize(
    ("population", "number", "sampler", "pruner"),
    [(1, 0, "tpe", HyperbandPruner), (10, 0, "gp", NopPruner), (2, 199, "gp", NopPruner), (2, 200, "tpe", NopPruner)],
)
def test_heads_that_train_together_are_chosen_by_a_gaussian_process_while_it_is_fast(
    population: int, number: int, sampler: str, pruner: type
) -> None:
    config = override(RunConfig(), {"sweep.population": population, "trainer.max_epochs": EPOCHS})
    assert sampler_name(config, number) == sampler
    assert type(make_pruner(config)) is pruner
    assert sampler_name(override(config, {"sweep.sampler": "random"}), number) == "random"


def test_a_gaussian_process_beats_random_search() -> None:
    base = override(RunConfig(), {"trainer.max_epochs": EPOCHS})
    for seed in (0, 1):
        model, random = (
            search(override(base, {"seed": seed, "sweep.sampler": name, "sweep.pruner": "none"}), NARROW, trials=20)
            for name in ("gp", "random")
        )
        assert gap(model) < gap(random)


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_a_sampler_beside_a_pruner_is_not_random_search(sampler: str) -> None:
    config = override(RunConfig(), {"sweep.pruner": "hyperband", "trainer.max_epochs": EPOCHS})
    model, random = (
        search(override(config, {"sweep.sampler": name}), NARROW, trials=20) for name in (sampler, "random")
    )
    pruned = [trial for trial in model.trials[:10] if trial.state == TrialState.PRUNED]
    assert pruned, "Optuna's own would wait for further trials"
    rates = [[trial.params["optimizer.learning_rate"] for trial in study.trials] for study in (model, random)]
    assert rates[0][:10] == rates[1][:10]
    assert not set(rates[0][10:]) & set(rates[1][10:])
