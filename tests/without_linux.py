"""A program: one train, one sweep with two workers, `evaluate` and `serve`, without the calls that macOS lacks.

Its arguments are the fields of the runs, as `name=value`. Its standard output has the score of `evaluate`, then what
`serve` prints.
"""

LINUX_ONLY = ("sched_getaffinity", "sched_setaffinity", "posix_fallocate")
SITE = f"import os\nfor name in {LINUX_ONLY}:\n    os.__dict__.pop(name, None)\n"
"""The same for the processes that it starts: their sitecustomize.py."""

if __name__ == "__main__":
    exec(SITE)
    import multiprocessing
    import sys
    from unittest import mock

    from experiments.config import load_config
    from experiments.predict import evaluate_export
    from experiments.runs import processes
    from experiments.single_run import run_path_prefix, train_run
    from experiments.sweep import run_sweep
    from sagemaker_launch.cli import main
    from tests.unpublished import NoPublisher

    processes.CONTEXT = multiprocessing.get_context("spawn")  # workers read sitecustomize.py
    config = load_config(None, dict(word.split("=", 1) for word in sys.argv[1:]))
    with (
        mock.patch("experiments.single_run.Publisher", NoPublisher),
        mock.patch("experiments.sweep.Publisher", NoPublisher),
    ):
        run = train_run(config, run_path_prefix(config), "run", {})
        run_sweep(config)
    print(evaluate_export(run.export, config, "test").metrics["test_loss"], flush=True)
    sys.exit(main(["serve", str(run.export)]))
