"""Errors that end a command on purpose, and their exit codes.

Our code raises these or other classes of its own. Any other exception is a bug.
"""

import signal

from lightning_modules.errors import UserError as UserError
from lightning_modules.redaction import redact

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the end of a container, and Slurm's notice before a time limit (`#SBATCH --signal=USR1@90`)."""
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_TIME_LIMIT, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class InterruptedRunError(Exception):
    """The user asked to stop; the same command resumes the run from its last checkpoint.

    Args:
        left: what the run has so far and where it is.
    """

    exit_code = EXIT_INTERRUPTED

    def __init__(self, left: str = "") -> None:
        super().__init__(f"interrupted{left}; the same command continues from here")


class CommandError(RuntimeError):
    """The settings are right, but the command did not do all of its work; the message says what is missing.

    Its secrets are redacted, as in a UserError.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class TrackingError(CommandError):
    """MLflow can't be reached; nothing is lost, and the message says how it gets there.

    Args:
        is_refusal: whether MLflow would refuse the same call again.
    """

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


class SweepError(CommandError):
    """The sweep can't continue; finished work is kept."""
