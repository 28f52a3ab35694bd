"""Rules on made-up recordings: each trips on its trouble, none on a training that goes well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.insight.recording import FILE, Finding, Recording, Sample, load_findings, save_findings
from lightning_modules.insight.rules import check

PARAMETERS = ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]
STEPS = 200


def array(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.asarray(values, np.float32)


def sample(step: int, loss: float = 1.0) -> Sample:
    return Sample(
        step,
        learning_rate=1.0,
        loss=loss,
        spread=0.5,
        gradient_norm=array(0.1, 0.01, 0.2, 0.02),
        gradient_mean=array(1e-3, 0.0, 1e-3, 1e-3),  # a bias in front of a norm has no gradient
        weight_norm=array(1, 1, 1, 1),
        update_ratio=array(1e-3, 1e-3, 1e-3, 1e-3),
        activation_mean=array(0.1, 0.2),
        activation_std=array(1, 1),
        dead_share=array(0.1, float("nan")),
    )


def healthy() -> Recording:
    """The loss falls from 2 to about 1, validation follows every 50 steps."""
    steps = list(range(STEPS))
    losses = [1 + np.exp(-step / 40) + 0.05 * np.sin(step) for step in steps]
    return Recording(
        PARAMETERS,
        [4, 1, 2, 1],
        ["relu", "fc"],
        steps,
        losses,
        [49, 49, 99, 99, 149, 149, 199, 199],
        [1.4, 1.5, 1.2, 1.3, 1.15, 1.25, 1.12, 1.22],
        [sample(step, losses[step]) for step in (0, 1, 5, 20, 50, 100, 150)],
    )


def replay(recording: Recording) -> list[Finding]:
    """What the rules would have said first while it was recorded: each rule at most once."""
    first: dict[str, Finding] = {}
    validated = set(recording.validation_steps)
    for end in sorted({sample.step for sample in recording.samples} | validated | set(recording.train_steps[-1:])):
        for finding in check(recording.until(end + 1), validated=end in validated):
            first.setdefault(finding.rule, finding)
    return list(first.values())


def rules_of(recording: Recording) -> set[str]:
    return {finding.rule for finding in replay(recording)}


def with_samples(recording: Recording, **changes: object) -> Recording:
    samples = [replace(sample, **changes) if sample.step >= 50 else sample for sample in recording.samples]
    return replace(recording, samples=samples)


def test_a_training_that_goes_well_breaks_no_rule() -> None:
    assert replay(healthy()) == []


def test_a_loss_that_is_no_number_names_the_step_and_silences_all_other_rules() -> None:
    losses = [*healthy().train_losses[:120], *[float("nan")] * 80]
    recording = replace(with_samples(healthy(), spread=0.0), train_losses=losses, not_finite_in="the output of conv")
    (finding,) = check(recording, validated=True)
    assert (finding.rule, finding.step, finding.layer) == ("not_finite", 120, "the output of conv")
    assert "step 120, first in the output of conv: lower optimizer.learning_rate" in finding.message


def test_gradients_that_vanish_name_the_last_layer_that_gets_none() -> None:
    recording = with_samples(healthy(), gradient_mean=array(1e-9, 0, 1e-3, 1e-3))
    (finding,) = replay(recording)
    assert (finding.rule, finding.step, finding.layer) == ("vanishing_gradient", 100, "conv.weight")
    assert "1 of 2 layers" in finding.message


def test_small_gradients_of_a_loss_that_is_gone_are_no_trouble() -> None:
    assert rules_of(with_samples(healthy(), gradient_mean=array(1e-9, 0, 1e-9, 1e-9), loss=1e-3)) == set()


def test_a_gradient_that_explodes_is_seen_at_once() -> None:
    (finding,) = replay(with_samples(healthy(), gradient_norm=array(300, 0.01, 0.2, 0.02)))
    assert (finding.rule, finding.step, finding.layer) == ("exploding_gradient", 50, "conv.weight")


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([2.0 + 0.1 * np.sin(step) for step in range(STEPS)], 100),  # flat
        ([2.0 + step for step in range(STEPS)], 20),  # climbs
    ],
)
def test_a_loss_that_does_not_fall(losses: list[float], step: int) -> None:
    recording = replace(healthy(), train_losses=losses, validation_steps=[], validation_losses=[])
    (finding,) = replay(recording)
    assert (finding.rule, finding.step) == ("loss_not_decreasing", step)


def test_overfitting_needs_two_validations_above_the_best_while_the_training_loss_falls() -> None:
    recording = replace(healthy(), validation_losses=[1.4, 1.5, 1.2, 1.3, 1.6, 1.7, 1.8, 1.9])
    (finding,) = replay(recording)
    assert (finding.rule, finding.step) == ("overfitting", 199)
    assert "was 1.25 at step 99" in finding.message
    once = replace(healthy(), validation_losses=[1.4, 1.5, 1.2, 1.3, 1.1, 1.2, 1.8, 1.9])
    assert rules_of(once) == set()
    still = replace(recording, train_losses=[1.5] * 10 + [1.4] * 90 + [1.45] * 100)
    assert "overfitting" not in rules_of(still)


def test_a_head_that_answers_the_same_to_all_is_dead_but_a_batch_of_one_says_nothing() -> None:
    assert rules_of(with_samples(healthy(), spread=1e-6)) == {"dead_head"}
    assert rules_of(with_samples(healthy(), spread=float("nan"))) == set()


def test_a_learning_rate_that_is_far_off_in_either_direction() -> None:
    (high,) = replay(with_samples(healthy(), update_ratio=array(3, 3, 3, 3)))
    (low,) = replay(with_samples(healthy(), update_ratio=array(1e-7, 1e-7, 1e-7, 1e-7)))
    assert high.rule == low.rule == "learning_rate"
    assert "lower optimizer.learning_rate" in high.message and "raise optimizer.learning_rate" in low.message
    assert rules_of(with_samples(healthy(), update_ratio=array(1e-7, 1, 1e-7, 1), learning_rate=0.01)) == set()


@given(
    parameters=st.lists(st.text(), max_size=3),
    losses=st.lists(st.floats(width=32), max_size=5),
    samples=st.integers(0, 3),
)
def test_a_recording_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, parameters: list[str], losses: list[float], samples: int
) -> None:
    folder = tmp_path_factory.mktemp("recording")
    count = len(parameters)
    filled = replace(
        sample(3),
        **{
            name: np.ones(count, np.float32)
            for name in ("gradient_norm", "gradient_mean", "weight_norm", "update_ratio")
        },
    )
    recording = Recording(
        parameters,
        [2] * count,
        ["relu", "fc"],
        list(range(len(losses))),
        losses,
        [1, 1],
        [0.5, float("nan")],
        [replace(filled, step=step) for step in range(samples)],
        "the loss",
    )
    recording.save(folder)
    loaded = Recording.load(folder)
    assert repr(loaded) == repr(recording)  # NaN is not equal to itself


def test_a_damaged_recording_is_named_and_half_a_file_is_never_written(tmp_path: Path) -> None:
    healthy().save(tmp_path)
    save_findings(tmp_path, [Finding("overfitting", 3, "text")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["findings.json", FILE]
    assert load_findings(tmp_path) == [Finding("overfitting", 3, "text")]
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:50])
    with pytest.raises(ValueError, match=r"recording\.safetensors is damaged, remove it"):
        Recording.load(tmp_path)
