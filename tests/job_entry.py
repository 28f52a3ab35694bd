"""Run the entry of a job's bundle where what a container lacks can't be imported: `python job_entry.py FOLDER`."""

from __future__ import annotations

import runpy
import sys

FORBIDDEN = ("boto3", "botocore", "mlflow", "optuna", "moto", "sklearn", "sagemaker")

if __name__ == "__main__":
    for name in FORBIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]
    # The checkout is installed in this environment: the bundle goes first, as the script's own folder does in a job.
    sys.path.insert(0, sys.argv[1])
    runpy.run_path("entry.py", run_name="__main__")
