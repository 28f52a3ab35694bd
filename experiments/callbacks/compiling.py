"""Compile the network if it saves time."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from experiments.console import duration, say
from lightning_modules import metrics
from lightning_modules.redaction import redact
from lightning_modules.torch_private import compile_backward_at_once, compiled_call, set_compiled_call

MAX_LETTERS = 200
"""Longest message of a compiler that is shown."""
COMPILE_SECONDS = 60.0
"""Seconds that compiling a ResNet50 for training and validation takes, about."""
COMPILE_GAIN = 0.11
"""Share of the training time that it saves: 4,483 against 3,978 images per second (ResNet50, 224 px, bf16, batch 256,
one H100, torch 2.11)."""


class CompileWhenItPays(Callback):
    """Compiles the network after the first epoch, if the remaining epochs will save more time than it takes."""

    def __init__(self) -> None:
        self._decided = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide once, also in a resumed run."""
        if self._decided:
            return
        self._decided = True
        epochs = (trainer.max_epochs or 1) - trainer.current_epoch - 1
        seconds_left = epochs * float(trainer.callback_metrics[metrics.EPOCH_SECONDS])
        network = pl_module.network
        assert isinstance(network, nn.Module)
        if seconds_left * COMPILE_GAIN <= COMPILE_SECONDS:
            say(f"torch.compile: not worth its {COMPILE_SECONDS:.0f} s, {duration(seconds_left)} of training are left")
            return
        say(f"torch.compile: from here on, {duration(seconds_left)} of training are left")
        compile_network(network)


def compile_network(network: nn.Module) -> None:
    """Have torch.compile compile a network with its first batch; where that fails, run it as it was and say why.

    PyTorch needs a C++ compiler for it, on a GPU Triton and a C compiler, and a folder for its cache.
    """

    def say_why(error: Exception) -> None:
        why = " ".join(redact(str(error)).partition("Set TORCHDYNAMO_VERBOSE")[0].split())[:MAX_LETTERS]
        say(f"torch.compile failed, training continues without it: {why}")

    compile_backward_at_once()  # an error within `loss.backward()` could not be caught
    try:
        # One more graph for the last batch of an epoch, rather than a slower one for all.
        network.compile(dynamic=False)
    except RuntimeError as error:  # a Python version that torch.compile does not know yet
        say_why(error)
        return
    compiled = compiled_call(network)
    assert compiled is not None

    def call(*inputs: object) -> object:
        try:
            return compiled(*inputs)
        except Exception as error:  # compilers raise all kinds; an error of the network itself comes again
            set_compiled_call(network, None)
            outputs = network(*inputs)
            say_why(error)
            return outputs

    set_compiled_call(network, call)
