"""torch.compile is switched on where the rest of the run earns it back, and is done without where it fails."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed
from torch._functorch import config as functorch_config

from experiments.callbacks.compiling import COMPILE_GAIN, COMPILE_SECONDS, CompileWhenItPays, compile_network

pytestmark = pytest.mark.usefixtures("compiles")
WORTH_IT = COMPILE_SECONDS / COMPILE_GAIN
"""Seconds of training that earn it back."""


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces what takes a minute."""
    monkeypatch.setattr("experiments.callbacks.compiling.compile_network", lambda network: network.compile())


def decide(callback: CompileWhenItPays, epoch_seconds: float, *, current_epoch: int = 0, max_epochs: int = 11) -> Mock:
    """Ask after an epoch; the mock that stands for `network.compile`."""
    network = nn.Linear(1, 1)
    network.compile = Mock()
    trainer = SimpleNamespace(
        current_epoch=current_epoch, max_epochs=max_epochs, callback_metrics={"epoch_seconds": epoch_seconds}
    )
    callback.on_validation_end(trainer, SimpleNamespace(network=network))
    return network.compile


def test_a_long_run_is_compiled_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    decide(CompileWhenItPays(), WORTH_IT / 10 * 1.01).assert_called_once()
    assert "torch.compile: from here on, 9 min of training are left" in capsys.readouterr().err


def test_a_short_run_is_not_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    decide(CompileWhenItPays(), WORTH_IT / 10 * 0.99).assert_not_called()
    assert "torch.compile: not worth its 60 s" in capsys.readouterr().err


def test_what_counts_is_what_is_left() -> None:
    decide(CompileWhenItPays(), WORTH_IT / 5, current_epoch=6).assert_not_called()
    decide(CompileWhenItPays(), WORTH_IT / 5 * 1.01, current_epoch=5).assert_called_once()


def test_it_is_decided_once() -> None:
    callback = CompileWhenItPays()
    decide(callback, 0.0)
    decide(callback, 10 * WORTH_IT).assert_not_called()


# Where the compiler fails


class Compiler:
    """In place of torch.compile: fails in one of its calls, as PyTorch does where a machine has no C++ compiler."""

    def __init__(self, failing_call: int, error: Exception) -> None:
        self.failing_call, self.error, self.calls = failing_call, error, 0

    def __call__(self, function: Callable[..., object], **options: object) -> Callable[..., object]:
        assert options == {"dynamic": False}

        def call(*inputs: object) -> object:
            self.calls += 1
            if self.calls == self.failing_call:
                raise self.error
            return function(*inputs)

        return call


def failure() -> Exception:
    return BackendCompilerFailed(
        None, RuntimeError("No working C++ compiler\nfound\n\nSet TORCHDYNAMO_VERBOSE=1 for more"), None
    )


@pytest.mark.parametrize("failing_call", [1, 3], ids=["first batch", "last batch, of another shape"])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (failure(), "No working C++ compiler found"),
        (OSError(30, "Read-only file system", "/tmp/torchinductor_me"), "Read-only file system"),
    ],
    ids=["no compiler", "no folder for the cache"],
)
def test_training_continues_where_compiling_fails_and_says_so_once(
    error: Exception, why: str, failing_call: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, batch = nn.Linear(3, 2), torch.randn(4, 3)
    wanted = network(batch)
    compiler = Compiler(failing_call, error)
    monkeypatch.setattr(torch, "compile", compiler)
    compile_network(network)
    for _ in range(5):
        assert torch.equal(network(batch), wanted)
    network(batch).sum().backward()
    assert network.weight.grad is not None
    assert compiler.calls == failing_call, "nothing is compiled afterwards"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("torch.compile failed, training continues without it: ")
    assert why in lines[0]
    assert "VERBOSE" not in lines[0]


def test_a_backward_pass_that_can_not_be_compiled_is_noticed_in_the_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With PyTorch's own tracing; by default the backward pass is compiled within `loss.backward()`."""

    def fail(graph: object, inputs: object) -> object:
        raise RuntimeError("out of resource: shared memory")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=fail)
    monkeypatch.setattr(functorch_config, "force_non_lazy_backward_lowering", False)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    network = nn.Linear(3, 2)
    compile_network(network)
    network(torch.randn(4, 3)).sum().backward()
    assert network.weight.grad is not None
    assert "training continues without it" in capsys.readouterr().err


def test_an_error_of_the_network_itself_is_no_compilers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(0, failure()))
    network = nn.Linear(3, 2)
    compile_network(network)
    with pytest.raises(RuntimeError, match="shapes"):
        network(torch.randn(4, 7))
    assert capsys.readouterr().err == ""


def test_a_python_that_has_no_torch_compile_trains_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "torch.compile is not supported on Python 3.16+"
    monkeypatch.setattr(torch, "compile", Mock(side_effect=RuntimeError(reason)))
    network = nn.Linear(3, 2)
    compile_network(network)
    assert network(torch.randn(4, 3)).shape == (4, 2)
    assert f"torch.compile failed, training continues without it: {reason}" in capsys.readouterr().err
