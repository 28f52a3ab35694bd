"""All private parts of PyTorch that we use. `pyproject.toml` has the versions; written against PyTorch 2.14.

Each function asserts what it relies on, or PyTorch raises an AttributeError here. What is shipped alone,
`inference.py`, has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH_NORM = _BatchNorm
"""The class of all batch normalisations."""


def compiled_call(network: nn.Module) -> Callable[..., Any] | None:
    """The function that a call of a network runs instead of `forward`; None if it is not compiled."""
    assert "_compiled_call_impl" in vars(nn.Module), "Module._compiled_call_impl is what Module.compile sets"
    return network._compiled_call_impl


def set_compiled_call(network: nn.Module, call: Callable[..., Any] | None) -> None:
    """Set the function that a call of a network runs; None runs `forward`."""
    assert "_compiled_call_impl" in vars(nn.Module), "Module._compiled_call_impl is what Module.compile sets"
    network._compiled_call_impl = call


def compile_backward_at_once() -> None:
    """Have torch.compile compile the backward pass with the forward pass, and not within `loss.backward()`."""
    from torch._functorch import config  # heavy, and only a run that compiles needs it

    config.force_non_lazy_backward_lowering = True


def norms(tensors: Sequence[Tensor], order: float = 2) -> Tensor:
    """The norm of each of N tensors, by a few kernels in all.

    Returns:
        (N,), on the device of the tensors.
    """
    return torch.stack(torch._foreach_norm(list(tensors), order))


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A copy of each tensor, by a few kernels in all."""
    return list(torch._foreach_mul(list(tensors), 1.0))


def differences(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor minus the other one, by a few kernels in all."""
    return list(torch._foreach_sub(list(tensors), list(others)))
