"""A Lightning callback that records how the layers of a network train, and applies the rules to it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_modules.insight.recording import (
    FILE,
    FINDINGS,
    Finding,
    FloatArray,
    Recording,
    Sample,
    load_findings,
    save_findings,
)
from lightning_modules.insight.rules import check
from lightning_modules.network import find_head
from lightning_modules.torch_private import compiled_call, copies, differences, norms, set_compiled_call

SAMPLED_EVERY: Mapping[str, int] = {"light": 50, "full": 10}
"""Steps from one sample of the layers to the next, by `trainer.record`."""
EARLY_STEPS = (1, 5, 20)
"""Further steps that are sampled, to find early errors early."""
SAVE_SECONDS = 10.0
"""Seconds between saves: what a kill may cost."""
NONLINEAR = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU)
"""Layers whose outputs `light` records, beside the head. Only units of the first two can die."""


class Recorder(Callback):
    """Records losses by step and, at some steps, gradients, weights, updates and activations of each layer.

    Everything is computed on the device and fetched at sampled steps: no other step waits for it.

    Args:
        folder: folder of recording and findings; after a restart an existing recording is continued.
        detail: light samples every 50th step, and of the activations those behind ReLUs and those of the head; full
            every 10th step, all layers.
        on_finding: called once per broken rule, on rank 0.
        stop: end training, after a validation, when a rule is broken.
    """

    def __init__(
        self,
        folder: Path,
        *,
        detail: Literal["light", "full"],
        on_finding: Callable[[Finding], None],
        stop: bool = False,
    ) -> None:
        self._folder, self._on_finding, self._stop = folder, on_finding, stop
        self._every, self._all_layers = SAMPLED_EVERY[detail], detail == "full"
        self._recording, self._findings = Recording(), list[Finding]()
        self._trained: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._validation: list[Tensor] = []
        self._probe: _Probe | None = None
        self._step, self._saved, self._has_unsaved = 0, time.monotonic(), False
        self._batch: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue the recording in the folder from the checkpoint, or start a new one."""
        # In the cloud one of the two may be missing after an interruption.
        if trainer.global_step and all((self._folder / name).is_file() for name in (FILE, FINDINGS)):
            self._recording = Recording.load(self._folder).until(trainer.global_step)
            self._findings = [finding for finding in load_findings(self._folder) if finding.step < trainer.global_step]
        trained = [
            (name, parameter) for name, parameter in _network(pl_module).named_parameters() if parameter.requires_grad
        ]
        self._recording.parameters = [name for name, _ in trained]
        self._recording.dimensions = [parameter.ndim for _, parameter in trained]
        self._trained = [parameter for _, parameter in trained]
        self._on_cpu = pl_module.device.type == "cpu"

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        """Place hooks on the layers if this step is sampled."""
        self._step, self._batch = trainer.global_step, batch
        if self._step % self._every == 0 or self._step in EARLY_STEPS:
            self._probe = _Probe(_network(pl_module), self._trained, all_layers=self._all_layers)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """On a CPU, where reading the loss is free, find the layer that is not finite before the weights change."""
        if self._on_cpu and not math.isfinite(loss.item()) and not self._recording.not_finite_in:
            if self._probe is not None:
                self._probe.remove_hooks()  # for this step only
            self._recording.not_finite_in = find_not_finite(_network(pl_module), self._batch[0])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure gradients, scaled back but not clipped, and weights."""
        if self._probe is not None:
            self._probe.before_update(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and fetch everything at a sampled step."""
        self._losses.append(outputs["loss"].detach())
        self._has_unsaved = True
        self._batch = None
        if self._probe is not None:
            self._recording.activations, sample = self._probe.sample(self._step, self._losses[-1])
            self._probe = None
            self._recording.samples.append(sample)
            self._fetch(trainer, validated=False)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the loss."""
        self._validation.append(outputs.detach())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fetch, and apply the rules to the whole epoch."""
        self._fetch(trainer, validated=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save with each checkpoint: the rules of a resumed run must find the same."""
        if self._has_unsaved:
            self._flush()
            self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the recording of a failed run too."""
        if self._probe is not None:
            self._probe.remove_hooks()
        if self._trained:  # a run that failed before its first step keeps the earlier recording
            self._flush()
            self._save(trainer)

    def _fetch(self, trainer: pl.Trainer, *, validated: bool) -> None:
        """Fetch the values from the device, and apply the rules."""
        self._flush()
        told = {finding.rule for finding in self._findings}
        new = [finding for finding in check(self._recording, validated=validated) if finding.rule not in told]
        self._findings += new
        if new or time.monotonic() - self._saved > SAVE_SECONDS:
            self._save(trainer)
        if self._stop and trainer.strategy.broadcast(bool(new)):
            trainer.should_stop = True
        for finding in new if trainer.is_global_zero else ():
            self._on_finding(finding)

    def _flush(self) -> None:
        if self._losses:
            losses = torch.stack(self._losses).tolist()
            self._recording.train_steps += range(self._step - len(losses) + 1, self._step + 1)
            self._recording.train_losses += losses
        if self._validation:
            losses = torch.stack(self._validation).tolist()
            self._recording.validation_steps += [self._step] * len(losses)
            self._recording.validation_losses += losses
        self._losses, self._validation = [], []

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved, self._has_unsaved = time.monotonic(), False
        if trainer.is_global_zero:
            self._recording.save(self._folder)
            save_findings(self._folder, self._findings)


class _Probe:
    """Measures the layers of a network in one step."""

    def __init__(self, network: nn.Module, trained: list[Tensor], *, all_layers: bool) -> None:
        self._network, self._trained = network, trained
        self._statistics: dict[str, Tensor] = {}
        self._spread = torch.tensor(float("nan"))
        # A compiled network does not call the hooks of its parts: it runs as written for this step.
        self._compiled = compiled_call(network)
        set_compiled_call(network, None)
        head = network.get_submodule(find_head(network))
        leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
        self._hooks = [
            module.register_forward_hook(self._watch(name or "head", isinstance(module, nn.ReLU | nn.ReLU6)))
            for name, module in leaves
            if all_layers or module is head or isinstance(module, NONLINEAR)
        ]
        self._hooks.append(head.register_forward_hook(self._watch_head))

    def before_update(self, optimizer: Optimizer) -> None:
        """Measure gradients and weights, and keep the weights."""
        group = optimizer.param_groups[0]
        self._learning_rate = float(group["lr"]) / float(group["initial_lr"])
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self._trained
        ]
        counts = torch.tensor([parameter.numel() for parameter in self._trained], device=gradients[0].device)
        self._gradient_norm = norms(gradients)
        self._gradient_mean = norms(gradients, 1) / counts
        self._weight_norm = norms(self._trained)
        self._before = copies(self._trained)

    def sample(self, step: int, loss: Tensor) -> tuple[list[str], Sample]:
        """The names of the layers and the measurements; waits for the device."""
        self.remove_hooks()
        changes = differences([parameter.detach() for parameter in self._trained], self._before)
        ratio = norms(changes) / self._weight_norm.clamp(min=torch.finfo(torch.float32).tiny)
        parameters = [self._gradient_norm, self._gradient_mean, self._weight_norm, ratio]
        layers = torch.stack(list(self._statistics.values()), dim=1)
        measured = torch.cat([*parameters, *layers, torch.stack([loss, self._spread.to(loss.device)])]).float()
        values: FloatArray = measured.detach().cpu().numpy()
        of_parameters = values[: 4 * len(self._trained)].reshape(4, -1)
        of_layers = values[of_parameters.size : -2].reshape(3, -1)
        sample = Sample(step, self._learning_rate, *values[-2:].tolist(), *of_parameters, *of_layers)
        return list(self._statistics), sample

    def remove_hooks(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        set_compiled_call(self._network, self._compiled)

    def _watch(self, name: str, may_die: bool) -> Callable[..., None]:
        def measure(*call: Any) -> None:
            # torchvision's blocks run the same ReLU several times.
            calls = sum(key == name or key.startswith(f"{name} #") for key in self._statistics)
            values = call[-1].detach().float()
            dead = torch.full((), float("nan"), device=values.device)
            if may_die:
                units = values.movedim(1, 0).flatten(1) if values.ndim > 1 else values[None]
                dead = (units.amax(dim=1) <= 0).float().mean()
            statistics = torch.stack([values.mean(), values.std(correction=0), dead])
            self._statistics[f"{name} #{calls + 1}" if calls else name] = statistics

        return measure

    def _watch_head(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if len(output) > 1:
            self._spread = output.detach().float().std(dim=0, correction=0).mean()


def find_not_finite(network: nn.Module, images: Tensor) -> str:
    """Find where values stop being finite.

    Args:
        images: the batch whose loss is not finite.

    Returns:
        "the images", "the weights of NAME", "the output of NAME", or "the loss" if all of these are finite.
    """
    if not bool(torch.isfinite(images).all()):
        return "the images"
    # A gradient of NaN spoils the weights of its layer and of all layers before it: the last such layer is the cause.
    spoilt = [name for name, parameter in network.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if spoilt:
        return f"the weights of {spoilt[-1].rpartition('.')[0] or 'the head'} (its gradient was not finite)"
    with _first_not_finite(network) as found, torch.no_grad():
        network(images)
    return f"the output of {found[0]}" if found else "the loss"


@contextmanager
def _first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(*call: Any) -> None:
            if not bool(torch.isfinite(call[-1]).all()):
                found.append(name or "the head")

        return hook

    hooks = [
        module.register_forward_hook(look(name))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _network(module: pl.LightningModule) -> nn.Module:
    network = module.network
    assert isinstance(network, nn.Module)
    return network
