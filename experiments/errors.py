"""What stops a command on purpose, and the exit code that goes with it."""

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class InterruptedRunError(Exception):
    """The user asked to stop; the run goes on from its last checkpoint when the same command runs again."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self) -> None:
        super().__init__("interrupted; the same command goes on from here")


class TrackingError(RuntimeError):
    """MLflow can't be reached; nothing is lost, and the message says how it gets there."""


class SweepError(RuntimeError):
    """The sweep can't go on; what it has done is kept."""
