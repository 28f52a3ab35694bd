"""Environment variables for other programs that would change our processes."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

LOOPBACK = "127.0.0.1,localhost,::1"
"""This machine, as NO_PROXY names it."""
FOREIGN = (
    # They send an MLflow client's points to another run, model or store, or send them later.
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"),
    *("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_RUN_CONTEXT", "MLFLOW_ENABLE_ASYNC_LOGGING"),
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    # MLflow's server takes them for options.
    *("MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_STATIC_PREFIX"),
    *("MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_ARTIFACTS_ONLY", "MLFLOW_SERVE_ARTIFACTS", "MLFLOW_GUNICORN_OPTS"),
    *("MLFLOW_UVICORN_OPTS", "MLFLOW_APP_NAME", "MLFLOW_READ_REPLICA_BACKEND_STORE_URI"),
    # Who may ask another server of the user, not the one of `ui`.
    *("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"),
    *("MLFLOW_SERVER_X_FRAME_OPTIONS", "MLFLOW_ENABLE_REMOTE_ASSISTANT"),
    # Git sets them in its hooks, and would name the commit of another repository.
    *("GIT_DIR", "GIT_WORK_TREE"),
)

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Which process of several this one is, for Lightning."""
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's server starts eight more processes for jobs that nothing here gives it: seven seconds of processor time.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""Variables that a user may set to other values."""


def own_environment() -> dict[str, str | None]:
    """The variables of our processes that differ from the inherited ones; None removes one."""
    values: dict[str, str | None] = dict.fromkeys(FOREIGN)
    values |= {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    for name in RANKS:
        if not os.environ.get(name, "0").isdecimal():
            values[name] = None  # Lightning cannot be imported with it
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises
    if home == "~":
        values["HOME"] = "/nonexistent"  # as Debian has it for such users; MLflow cannot be imported without any
    if not os.access(home, os.W_OK) and "MPLCONFIGDIR" not in os.environ:
        import tempfile  # `--help` does not need it

        # Each process of matplotlib would look through the fonts, and say so.
        values["MPLCONFIGDIR"] = str(Path(tempfile.gettempdir()) / f"matplotlib-{os.getuid()}")
    values["LOGNAME"] = user_name()  # MLflow asks for it, and some containers' users have none
    values["JOBLIB_MULTIPROCESSING"] = "0"  # unused, and scikit-learn's joblib warns where /dev/shm is not writable
    values["MPLBACKEND"] = "agg"  # pictures are files, also in a notebook or on a desktop
    for name in ("NO_PROXY", "no_proxy"):  # no proxy leads back to this machine
        known = os.environ.get(name, "")
        values[name] = known if LOOPBACK in known else ",".join(filter(None, [known, LOOPBACK]))
    return values


def user_name() -> str:
    """User name of this process; a container's user may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # before and since Python 3.13
        return f"uid-{os.getuid()}"


def set_variables(values: dict[str, str | None]) -> None:
    """Set variables of this process; None removes one."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
