"""Rules that find problems of a training in its recording.

`check` reads the newest part of a recording, so it costs the same at step 100 and at step 100,000. Every threshold
names its source; "Ours" has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import fmean, median

import numpy as np

from lightning_modules.insight.recording import Finding, Recording

VANISHING_GRADIENT = 1e-7
"""Smallest mean absolute gradient of a layer. Source: default of Amazon SageMaker Debugger's rule VanishingGradient
(developer guide, 'List of Debugger built-in rules', read 2026-11)."""
LEARNED = 0.01
"""Loss of a batch below which small gradients are normal: there is nothing left to learn. Ours."""
EXPLODING_GRADIENT = 100.0
"""Largest gradient norm of the network as a multiple of the median so far. Pascanu et al. 2013, arXiv:1211.5063,
section 3.2, clip between half and ten times the average; ten times more than that is no noise."""
DECREASE = 0.01
"""Share by which the mean loss of the newest quarter of the steps must be below that of the first. SageMaker
Debugger's LossNotDecreasing wants 0.1 % between single steps, which is within the noise of batches."""
CLIMB = 3.0
"""Multiple of its first value that the loss may not reach: that one is about ln(number of classes), a guess. Ours."""
STEPS_TO_DECREASE = 100
"""Steps before the loss is judged. Ours."""
GENERALISATION_LOSS = 0.05
"""Share by which the validation loss may be above its best, twice in a row, while the training loss falls. Source:
Prechelt 1998, 'Early Stopping - But When?', criteria GL_5 and UP_2."""
SETTLED = 20
"""First step at which a training is judged by its present values, independent of its start. Ours."""
DEAD_SPREAD = 1e-4
"""Smallest standard deviation of scores from image to image: a softmax of such scores separates no classes. Ours."""
UPDATE_RATIO_HIGH, UPDATE_RATIO_LOW = 1.0, 1e-5
"""Share of its weights that the median layer may change in a step. Stanford's CS231n, 'Ratio of weights:updates'
(cs231n.github.io/neural-networks-3, read 2026-11), wants about 1e-3; Adam's first steps on a fresh head take 0.4."""

NEWEST = 500
"""Steps that a rule looks at, at most, so that it costs the same late in a run."""
NOT_FINITE = "not_finite"
"""The only rule after which a run cannot recover."""


def check(recording: Recording, *, validated: bool) -> list[Finding]:
    """Findings of the rules at the present end of a recording.

    Args:
        validated: whether it ends with a validation.
    """
    broken = list(_not_finite(recording))
    if broken:
        return broken  # no other rule can be applied to such values
    rules = [*RULES, _overfitting] if validated else RULES
    return [finding for rule in rules for finding in rule(recording)]


def _not_finite(recording: Recording) -> Iterator[Finding]:
    newest = zip(recording.train_steps[-NEWEST:], recording.train_losses[-NEWEST:], strict=True)
    first = next(((step, loss) for step, loss in newest if not math.isfinite(loss)), None)
    if first is not None:
        step, loss = first
        origin = f", first in {recording.not_finite_in}" if recording.not_finite_in else ""
        yield Finding(
            NOT_FINITE,
            step,
            f"the loss is {loss} at step {step}{origin}: lower optimizer.learning_rate or set trainer.gradient_clip",
            recording.not_finite_in,
        )


def _vanishing_gradient(recording: Recording) -> Iterator[Finding]:
    if len(recording.samples) < 2 or min(sample.loss for sample in recording.samples[-2:]) < LEARNED:
        return
    newest = np.max([sample.gradient_mean for sample in recording.samples[-2:]], axis=0)
    vanished = [index for index in recording.weights if newest[index] < VANISHING_GRADIENT]
    if vanished:
        step, layer = recording.samples[-1].step, recording.parameters[vanished[-1]]
        yield Finding(
            "vanishing_gradient",
            step,
            f"the mean gradient of {layer} is {newest[vanished[-1]]:.1e} at step {step}, and {len(vanished)} of "
            f"{len(recording.weights)} layers are below {VANISHING_GRADIENT:.0e}: nothing reaches them; train fewer "
            "(model.trainable), or look for dead ReLUs and a head of zeros",
            layer,
        )


def _exploding_gradient(recording: Recording) -> Iterator[Finding]:
    norms = [sample.whole_gradient_norm for sample in recording.samples[-100:]]
    if len(norms) < 4:
        return
    usual, newest = median(norms[:-1]), norms[-1]
    if newest > EXPLODING_GRADIENT * usual > 0:
        step = recording.samples[-1].step
        layer = recording.parameters[int(np.argmax(recording.samples[-1].gradient_norm))]
        yield Finding(
            "exploding_gradient",
            step,
            f"the gradient is {newest / usual:.0f} times as long as it was, most of all in {layer}, at step {step}: "
            "set trainer.gradient_clip, lower optimizer.learning_rate or raise optimizer.warmup_epochs",
            layer,
        )


def _loss_not_decreasing(recording: Recording) -> Iterator[Finding]:
    losses, step = recording.train_losses, recording.train_steps[-1] if recording.train_steps else 0
    if step >= SETTLED and fmean(losses[-10:]) > CLIMB * losses[0]:
        yield Finding(
            "loss_not_decreasing",
            step,
            f"the training loss began at {losses[0]:.4g} and is {fmean(losses[-10:]):.4g} at step {step}: lower "
            "optimizer.learning_rate or set trainer.gradient_clip",
        )
        return
    if len(losses) < STEPS_TO_DECREASE:
        return
    quarter = min(len(losses) // 4, NEWEST)
    first, newest = fmean(losses[:quarter]), fmean(losses[-quarter:])
    if newest > (1 - DECREASE) * first:
        yield Finding(
            "loss_not_decreasing",
            step,
            f"the training loss was {first:.4g} over the first {quarter} steps and is {newest:.4g} over the last, at "
            f"step {step}: try another optimizer.learning_rate, and look at the labels",
        )


def _overfitting(recording: Recording) -> Iterator[Finding]:
    validations = recording.validations()
    losses, steps = list(validations.values()), list(validations)
    if len(losses) < 3:
        return
    best = int(np.argmin(losses))
    if best >= len(losses) - 2 or min(losses[-2:]) <= (1 + GENERALISATION_LOSS) * losses[best]:
        return
    means = [_train_mean(recording, start, end) for start, end in pairwise([-1, *steps])]
    if means[-1] < means[best]:
        yield Finding(
            "overfitting",
            steps[-1],
            f"the validation loss is {losses[-1]:.4g} at step {steps[-1]} and was {losses[best]:.4g} at step "
            f"{steps[best]}, while the training loss fell from {means[best]:.4g} to {means[-1]:.4g}: stop earlier "
            "(trainer.early_stopping_patience), augment more (data.augment), raise optimizer.weight_decay or "
            "model.dropout, train fewer layers",
        )


def _dead_head(recording: Recording) -> Iterator[Finding]:
    late = [sample for sample in recording.samples[-2:] if sample.step >= SETTLED]
    if len(late) == 2 and all(sample.spread < DEAD_SPREAD for sample in late):  # NaN is not smaller
        step = late[-1].step
        yield Finding(
            "dead_head",
            step,
            f"the scores vary by {late[-1].spread:.1e} from image to image at step {step}: the head answers the "
            "same to all; start it from random weights, and look for features that are all zero",
        )


def _learning_rate(recording: Recording) -> Iterator[Finding]:
    # A head of zeros takes an endless first step; warm-up and decay are small on purpose.
    late = [sample for sample in recording.samples[-2:] if sample.step > 0 and sample.learning_rate >= 0.5]
    if len(late) < 2 or not recording.weights:
        return
    medians = [float(np.median(sample.update_ratio[recording.weights])) for sample in late]
    step = late[-1].step
    if min(medians) > UPDATE_RATIO_HIGH:
        text = f"a step changes {medians[-1]:.0%} of the weights (median layer) at step {step}: lower"
    elif max(medians) < UPDATE_RATIO_LOW:
        text = f"a step changes only {medians[-1]:.1e} of the weights (median layer) at step {step}: raise"
    else:
        return
    yield Finding("learning_rate", step, f"{text} optimizer.learning_rate; about 0.1 % is usual")


def _train_mean(recording: Recording, after: int, until: int) -> float:
    """The mean training loss of the steps between two validations."""
    pairs = zip(recording.train_steps, recording.train_losses, strict=True)
    losses = [loss for step, loss in pairs if after < step <= until]
    return fmean(losses) if losses else math.nan


RULES: tuple[Callable[[Recording], Iterator[Finding]], ...] = (
    _vanishing_gradient,
    _exploding_gradient,
    _loss_not_decreasing,
    _dead_head,
    _learning_rate,
)
