"""Record a network with smdebug: hooks, and the check that they saved tensors."""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sagemaker_launch.container.smdebug.compat import DebuggerError, load_smdebug

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE = "input/config/debughookconfig.json"
"""File in which the service configures what is saved."""
TENSORS = "/opt/ml/output/tensors"
"""Default folder from which the service uploads tensors."""
END_OF_JOB = "training_job_end.ts"
"""File that tells readers that all tensors are written."""
Mode = Literal["TRAIN", "EVAL"]
Placed = tuple[dict[int, Any], int, Any]
"""A hook, with the table of torch's that it is in and its key there."""


class TensorRecorder:
    """smdebug's hook in a training: what it saves is in `folder`.

    Depending on its configuration, smdebug raises errors within a training, or logs them and turns itself off. Here the
    training always continues, and `check` reports the error.
    """

    def __init__(self, config_file: Path) -> None:
        load_smdebug()
        from smdebug.core.modes import ModeKeys
        from smdebug.core.utils import error_handling_agent
        from smdebug.pytorch import Hook

        self._config_file = config_file
        self.folder = Path(json.loads(config_file.read_text()).get("LocalPath") or TENSORS)
        _clear_leftovers(self.folder)
        self._modes, self._agent = ModeKeys, error_handling_agent
        self._agent.disable_smdebug = False
        self._error: BaseException | None = None
        with _refused(config_file):
            self._hook = Hook.create_from_json_file(str(config_file))
        self._hook.has_default_configuration = self._note_error
        self._hook._make_numpy_array = _numpy_maker(self._hook._make_numpy_array)
        self._always: list[Placed] = []
        self._sometimes: list[Placed] = []
        self._is_on = False
        self._first_step = self._hook.step
        self.check()

    def watch(self, network: nn.Module, losses: Sequence[nn.Module]) -> None:
        """Put hooks on a network and on the modules of its losses.

        The hooks of layers take milliseconds per step, so they exist only in steps that save more than losses.
        """
        modules = [network, *losses]
        first = network.register_forward_pre_hook(self._before_step)  # ahead of smdebug's, which begins a step
        known = {key for table in _hook_tables(modules) for key in table} - {first.id}
        self._hook.register_module(network)
        for loss in losses:
            self._hook.register_loss(loss)
        with _refused(self._config_file):  # smdebug itself would fail in the first step
            self._hook._prepare_collections()
        self.check()
        self._costly = [
            collection for collection in self._hook._get_all_collections_to_save() if collection.name != "losses"
        ]
        log_params = self._hook._log_params
        self._hook._log_params = lambda module: log_params(module) if self._is_on else None
        guard = self._agent.catch_smdebug_errors()  # smdebug wraps all of its hooks in it, except those of gradients
        each_step = {id(network._forward_pre_hooks), *(id(loss._forward_hooks) for loss in losses)}
        for table in _hook_tables(modules):
            placed = [(table, key, guard(hook)) for key, hook in table.items() if key not in known]
            (self._always if id(table) in each_step else self._sometimes).extend(placed)
        self._switch_off()

    def set_mode(self, mode: Mode) -> None:
        """Set the mode of the next steps."""
        self._hook.set_mode(self._modes[mode])

    @property
    def steps(self) -> dict[str, int]:
        """The last step of each mode, from 0; GLOBAL counts them all."""
        return {mode.name: step for mode, step in self._hook.mode_steps.items()}

    def resume(self, steps: Mapping[str, int]) -> None:
        """Continue with the steps of an earlier process."""
        self._hook.mode_steps = {self._modes[mode]: step for mode, step in steps.items()}
        self._hook.step = self._first_step = steps["GLOBAL"]

    def close(self) -> None:
        """Remove the hooks, write what is left, and write the file that marks the end of the job."""
        if self._is_on:
            self._switch_off()
        for table, key, _ in self._always:
            del table[key]
        self._always, self._sometimes = [], []
        atexit.unregister(self._hook._cleanup)
        try:
            self._hook.close()
        except Exception as error:
            self._error = self._error or error
        self.folder.mkdir(parents=True, exist_ok=True)
        # smdebug does not write this file if TRAINING_JOB_NAME is set; its readers wait for it.
        (self.folder / END_OF_JOB).touch()

    def check(self) -> None:
        """Check that all tensors were saved.

        Raises:
            DebuggerError: if smdebug turned itself off, or wrote nothing.
        """
        if self._agent.disable_smdebug or self._error:
            why = f"{type(self._error).__name__}: {self._error}" if self._error else "see the traceback in the log"
            raise DebuggerError(
                f"smdebug turned itself off at step {self._hook.step} ({why}); what it saved before is in {self.folder}"
            ) from self._error
        seen = self._hook.step - self._first_step
        written = (int(path.parent.name) for path in (self.folder / "events").rglob("*.tfevents"))
        if seen and not any(step > self._first_step for step in written):
            raise DebuggerError(
                f"smdebug saw {seen} steps and wrote no event files into {self.folder}: the collections and save "
                f"intervals of {CONFIG_FILE} must make it save something"
            )

    def _before_step(self, module: nn.Module, inputs: object) -> None:
        """Add the layers' hooks in a step that saves them, and remove them in the next step, after its gradients."""
        mode = self._hook.mode
        step = self._hook.mode_steps[mode] + 1
        due = any(collection.save_config.should_save_step(mode, step) for collection in self._costly)
        if due and not self._is_on:
            for table, key, hook in self._sometimes:
                table[key] = hook
            self._is_on = True
        elif self._is_on and not due:
            self._switch_off()

    def _switch_off(self) -> None:
        for table, key, _ in self._sometimes:
            del table[key]
        self._is_on = False

    def _note_error(self) -> bool:
        """Called by smdebug's error handling, which continues without smdebug if this is true."""
        self._error = sys.exc_info()[1]
        return True


@contextlib.contextmanager
def _refused(config_file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its own errors have no common class
        raise DebuggerError(f"smdebug refuses {config_file}: {error}") from error


def _clear_leftovers(folder: Path) -> None:
    """Remove the files of a process that was killed: smdebug would append to them or follow them."""
    for leftover in [*folder.rglob("*.tmp"), folder / "claim.smd", folder / END_OF_JOB]:
        leftover.unlink(missing_ok=True)


def _hook_tables(modules: Sequence[nn.Module]) -> Iterator[dict[int, Any]]:
    """Torch's tables of the hooks of modules and their parameters."""
    for module in (module for part in modules for module in part.modules()):
        yield module._forward_pre_hooks
        yield module._forward_hooks
    for parameter in (parameter for part in modules for parameter in part.parameters()):
        yield parameter._backward_hooks or {}


def _numpy_maker(make_array: Any) -> Any:
    """Converts a tensor to an array for smdebug, also bfloat16, which numpy does not have."""
    import torch

    def make(value: Any) -> Any:
        return make_array(value.float() if getattr(value, "dtype", None) is torch.bfloat16 else value)

    return make
