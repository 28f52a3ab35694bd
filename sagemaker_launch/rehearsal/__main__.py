"""`python -m sagemaker_launch.rehearsal --root DIR`: the stand-in for SageMaker, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from lightning_modules.redaction import RedactedFormatter
from sagemaker_launch.rehearse import TOOLKITS

ACCOUNT = "123456789012"
"""Account of a rehearsal that is told no other, as in AWS's documentation."""

log = logging.getLogger("sagemaker_launch.rehearsal")


def main() -> int:
    """Serve until told to stop."""
    arguments = _parser().parse_args()
    _forget_aws()
    # moto makes a session of botocore when it is imported, which reads AWS's variables and files. The help needs none.
    import optuna

    from sagemaker_launch.rehearsal.faults import FaultSettings
    from sagemaker_launch.rehearsal.machine.image_root import ImageRoot
    from sagemaker_launch.rehearsal.machine.runner import Settings
    from sagemaker_launch.rehearsal.quotas import parse_quotas
    from sagemaker_launch.rehearsal.server import Server

    os.environ["MOTO_ACCOUNT_ID"] = arguments.account  # moto reads it at each request
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna replaces AWS's strategies here, without log lines
    root = arguments.root.resolve()
    try:
        make_private(root)
    except OSError as error:
        print(f"rehearsal: {error}", file=sys.stderr)
        return 1
    _log_to(root / "server.log")
    # Handlers, and not a blocked mask: jobs would inherit the mask and never be told to stop.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if arguments.until_eof:
        threading.Thread(target=_wait_for_eof, args=(stop,), name="starter", daemon=True).start()
    images = (arguments.images or root).resolve()
    try:
        settings = Settings(
            root=root,
            account=arguments.account,
            grace_seconds=arguments.grace,
            checkpoint_seconds=arguments.checkpoint_interval,
            spot_interrupt_after=arguments.spot_interrupt_after,
            max_parallel_jobs=arguments.max_parallel_jobs,
            max_endpoint_instances=arguments.max_endpoint_instances,
            quotas=parse_quotas(arguments.quotas),
            health_check_seconds=arguments.health_check_timeout,
            rollout_speed=arguments.rollout_speed,
            toolkit=arguments.toolkit,
            python=arguments.python,
            inference_images=arguments.inference_images,
            serving_root=arguments.serving_root and ImageRoot.read(arguments.serving_root),
            without_gpu=arguments.without_gpu,
            debugger=not arguments.without_debugger,
            keep_trees=arguments.keep_trees,
        )
        faults = FaultSettings.parse(arguments.faults)
        server = Server(settings, arguments.port, images, not arguments.no_namespaces, faults)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"rehearsal: {error}", file=sys.stderr)
        return 1
    server.start()
    for name, value in {**server.environment(), **server.administrator()}.items():
        print(f"export {name}={value}", flush=True)
    stop.wait()
    log.info("stopping: running jobs and endpoints end now")
    server.stop()
    return 0


def make_private(root: Path) -> None:
    """Make a folder that only this user can open.

    Raises:
        OSError: if it belongs to another user, who could read and replace what jobs leave there.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise PermissionError(f"--root {root} belongs to another user: name a folder of your own")
    root.chmod(0o700)


def _forget_aws() -> None:
    """Drop what variables and files say of AWS: this process calls its own address only."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


def _wait_for_eof(stop: threading.Event) -> None:
    # Not sys.stdin: Python can't close it at exit while a thread reads from it.
    while os.read(0, 4096):
        pass
    stop.set()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sagemaker_launch.rehearsal", description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder of all that the server keeps")
    add("--account", default=ACCOUNT, help=f"number of the AWS account (default: {ACCOUNT})")
    add("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    add("--images", type=Path, help="folder of the job image, which servers may share (default: --root)")
    add("--faults", default="", help="faults to rehearse, as rate=0.2,seed=1[,slow_seconds=1] (default: none)")
    add("--max-parallel-jobs", type=int, default=20, help="quota of instances in training jobs (default: 20)")
    add("--max-endpoint-instances", type=int, default=20, help="quota of instances in endpoints (default: 20)")
    add("--quotas", default="", metavar="TYPE=N,...", help="quotas by instance type, as ml.p3.2xlarge=0,ml.g5.xlarge=1")
    add(
        "--health-check-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="time in which a container of an endpoint must answer /ping, unless its config gives less (default: 60; "
        "AWS's Ray Serve has at least 180)",
    )
    add(
        "--rollout-speed",
        type=float,
        default=600.0,
        help="how many times faster than asked an update shifts traffic (default: 600, ten minutes take a second)",
    )
    add("--toolkit", default=TOOLKITS[0], choices=TOOLKITS, help=f"AWS's toolkit in jobs (default: {TOOLKITS[0]})")
    add("--python", type=Path, metavar="PATH", help="interpreter of jobs (default: as in AWS's image, if there is one)")
    add("--inference-images", type=Path, help="folder of AWS's inference images, built there when first needed")
    add("--serving-root", type=Path, help="folder of this project's serving image, unpacked: endpoints run from it")
    add("--grace", type=float, default=120.0, help="seconds between SIGTERM and SIGKILL (default: 120, as on AWS)")
    add("--checkpoint-interval", type=float, default=2.0, help="seconds between uploads of checkpoints (default: 2)")
    add("--spot-interrupt-after", type=float, metavar="SECONDS", help="interrupt each spot job once, after SECONDS")
    add("--no-namespaces", action="store_true", help="run jobs below --root even where namespaces are allowed")
    add(
        "--without-gpu", action="store_true", help="let jobs and endpoints of GPU instances use the CPU of this machine"
    )
    add("--without-debugger", action="store_true", help="refuse Debugger, as AWS does in accounts that do not have it")
    add(
        "--until-eof",
        action="store_true",
        help="end when standard input does, so when its starter is gone",
    )
    add("--keep-trees", action="store_true", help="keep the folders of ended jobs and endpoints below --root")
    return parser


def _log_to(path: Path) -> None:
    """Log everything to a file, and what this package says also to standard error."""
    file = logging.FileHandler(path)
    file.setFormatter(RedactedFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[file])
    console = logging.StreamHandler()
    console.setFormatter(RedactedFormatter("rehearsal: %(message)s"))
    logging.getLogger("sagemaker_launch.rehearsal").addHandler(console)


if __name__ == "__main__":
    sys.exit(main())
