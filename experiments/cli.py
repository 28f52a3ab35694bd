"""The command line. Nothing heavy is imported before the command needs it: `--help` answers at once."""

from __future__ import annotations

import argparse
import errno
import json
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from experiments.config import (
    RunConfig,
    field_names,
    load_config,
    require_free_port,
    require_output_file,
    tracking_uri,
)
from experiments.console import invocation, quiet_libraries, say
from experiments.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CommandError, UserError
from experiments.fields import fields_help, fields_of, unknown_field
from experiments.runs.environment import own_environment, set_variables
from lightning_modules.redaction import public_url, redact, remember_url

SETTINGS_TYPES: Mapping[str, type] = {"": RunConfig}
"""Prefix of fields on the command line, and the dataclass that has them."""


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Returns:
        0 done, 1 failed, 2 wrong use, 130 interrupted.
    """
    command_arguments, fields = split_fields(argv)
    arguments, remaining = command_parser().parse_known_args(command_arguments)

    def run() -> None:
        arguments.overrides = parse_overrides([*fields, *remaining])
        refuse_foreign_fields(arguments.overrides, arguments.uses, SETTINGS_TYPES)
        arguments.command(load_config(arguments.config, arguments.overrides), arguments)

    return run_command(run, show_traceback=arguments.traceback)


def run_command(command: Callable[[], None], *, show_traceback: bool) -> int:
    """Run a command and return its exit code.

    An error of ours is explained in one line. Any other error is a bug: it keeps its traceback, which is also logged.

    Args:
        show_traceback: print the traceback of errors of ours too.
    """
    quiet_libraries()
    set_variables(own_environment())
    try:
        command()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        explained = explanation(error)
        if show_traceback or explained is None:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
        code = int(getattr(error, "exit_code", EXIT_USAGE if isinstance(error, UserError) else EXIT_FAILED))
        message = redact(explained) if explained else bug_report(error)
        print(f"{'' if code == EXIT_INTERRUPTED else 'error: '}{message}", file=sys.stderr)
        return code
    return EXIT_DONE


MACHINE_ERRORS = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EROFS: "choose another folder (output_dir, data.cache_dir)",
    errno.EACCES: "change its permissions, or choose another folder (output_dir, data.cache_dir)",
    errno.EPERM: "change its permissions, or choose another folder (output_dir, data.cache_dir)",
    errno.EIO: "the disk or network drive did not answer; look at the system's log",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
}
"""Next step for errors of the machine, which can happen at any moment and are not bugs."""


AWS_CLIENTS = ("botocore", "boto3", "s3transfer", "urllib3")
"""Packages whose errors are about AWS, the network or credentials."""


def explanation(error: Exception) -> str | None:
    """The message of an error for the user; None for a bug."""
    package = type(error).__module__.partition(".")[0]
    if package in ("experiments", "lightning_modules", "sagemaker_launch"):
        return str(error)
    if package in AWS_CLIENTS:
        return " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return f"{message}: {MACHINE_ERRORS[error.errno]}. Finished work is kept; then the same command continues it"
    return None


def bug_report(error: BaseException) -> str:
    """Log an unexpected error with its traceback and versions, and say where the log is."""
    import tempfile  # rarely needed

    lines = [
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(sys.argv)}",
        f"Python {sys.version.split()[0]} on {sys.platform}, local-first-experiments {_version()}",
        "".join(traceback.format_exception(error)),
    ]
    with tempfile.NamedTemporaryFile(prefix="experiments-", suffix=".log", delete=False) as file:
        file.write(redact("\n".join(lines)).encode("utf-8", "backslashreplace"))  # a file's name may hold any bytes
    return (
        f"{type(error).__name__} was not expected here: this is a bug in this program, not a mistake of yours.\n"
        f"The log is {file.name}: please report it. Finished work is kept; the same command continues it."
    )


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("local-first-experiments")
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return "(not installed)"


def split_fields(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and the fields of the config, in any order."""
    names = set(field_names())
    command_arguments: list[str] = []
    fields: list[str] = []
    remaining = list(argv)
    while remaining:
        token = remaining.pop(0)
        name, equals, _ = token[2:].partition("=")
        if not (token.startswith("--") and (name in names or "." in name)):
            command_arguments.append(token)
            continue
        fields += [token] if equals else [token, *remaining[:1]]
        remaining = remaining if equals else remaining[1:]
    return command_arguments, fields


def parse_overrides(tokens: Sequence[str]) -> dict[str, str]:
    """`--section.field value` and `--section.field=value` as a mapping.

    Raises:
        UserError: for anything else.
    """
    overrides: dict[str, str] = {}
    remaining = list(tokens)
    while remaining:
        token = remaining.pop(0)
        if not token.startswith("--"):
            raise UserError(f"unexpected argument {token!r}; fields are set as --section.field value")
        name, equals, value = token[2:].partition("=")
        if not equals:
            if not remaining:
                raise UserError(f"--{name} needs a value")
            value = remaining.pop(0)
        overrides[name] = value
        remember_url(value)  # every message from here on
    return overrides


def refuse_foreign_fields(
    typed: Mapping[str, str], commands: Sequence[str], settings_types: Mapping[str, type]
) -> None:
    """Refuse fields that a command does not use. A preset may hold them: it is for several commands.

    Args:
        typed: field names, as on the command line, and values.
        commands: the command, and further commands that it runs.
        settings_types: as SETTINGS_TYPES; the empty prefix last.

    Raises:
        UserError: for a name that is no field, or a field of other commands.
    """
    command = commands[0].removeprefix("cloud ")
    for name, value in typed.items():
        prefix, settings_type = next(
            (prefix, settings_type) for prefix, settings_type in settings_types.items() if name.startswith(prefix)
        )
        field = fields_of(settings_type).get(name.removeprefix(prefix))
        if field is None:
            raise unknown_field(name, settings_type, prefix=prefix, command=command)
        if not field.is_used_by(commands):
            raise UserError(
                f"{name} must be left out of `{command}`, which does not use it, got {value!r}; "
                f"`{command} --help` lists its fields, and a preset may hold any field"
            )


def _sweep(config: RunConfig, arguments: argparse.Namespace) -> None:
    import optuna

    from experiments.runs.intervals import metric_text, selection_text
    from experiments.study.study import count_finished, photo_facts
    from experiments.sweep import run_sweep
    from lightning_modules.metrics import VAL_ACCURACY

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    result = run_sweep(config, more=arguments.more)
    facts, finished = photo_facts(result.study), count_finished(result.study)
    scored = {config.sweep.metric: result.best.value, VAL_ACCURACY: result.best.user_attrs[VAL_ACCURACY]}
    print(f"\nstudy {result.study.study_name}: {len(result.study.get_trials(deepcopy=False))} trials")
    shown = ", ".join(metric_text(name, value, facts) for name, value in scored.items())
    print(f"best trial {result.best.number}: {shown}, at its best epoch")
    print(f"  {selection_text(finished, 'trial', facts)}; `train --from-best` scores the test split")
    for name, value in result.best.params.items():
        print(f"  {name}: {value}")
    print(f"model:  {result.folder / 'trials' / f'{result.best.number:04d}' / 'export'}")
    print(f"report: {result.report}")
    print(f"runs:   MLflow experiment '{config.tracking.experiment}' in {public_url(tracking_uri(config))}")
    print(f"look:   {_ui_address(config)}")


def _train(config: RunConfig, arguments: argparse.Namespace) -> None:
    from experiments.runs.intervals import interval_text
    from experiments.single_run import train_and_register
    from lightning_modules.metrics import HIGHEST_VAL_ACCURACY

    if arguments.from_best and arguments.config:
        raise UserError("--from-best takes the study's own config: leave --config out")
    result = train_and_register(config, from_best=arguments.from_best, overrides=arguments.overrides)
    print(f"scores at the best epoch, by {result.facts['sweep.metric']}:")
    for name, value in sorted(result.metrics.items()):
        # How fast it trained, and at which rate, is in MLflow.
        if name.startswith(("train_", "val_", "test_", HIGHEST_VAL_ACCURACY)):
            of = ", of any epoch" if name == HIGHEST_VAL_ACCURACY else ""
            print(f"{name}: {value:.6g}{interval_text(name, value, result.facts)}{of}")
    print(f"model:    {result.export}")
    print(f"registry: {result.model_uri}{' (champion)' if result.champion else ''}")
    if arguments.from_best:
        from experiments.report.report import report_studies
        from experiments.study.study import load_study

        # The study's own page shows the test score of its best trial from now on.
        print(f"report:   {report_studies([load_study(config, arguments.from_best)], config)}")
    print(f"look:     {_ui_address(config)}")


def _evaluate(config: RunConfig, arguments: argparse.Namespace) -> None:
    from experiments.predict import evaluate_export
    from experiments.runs.intervals import interval_text, metric_interval
    from experiments.tracking.exports import locate_export

    done = evaluate_export(locate_export(arguments.model, config), config, arguments.split)
    if arguments.json:
        intervals = {name: metric_interval(name, value, done.facts) for name, value in done.metrics.items()}
        known = {name: interval for name, interval in intervals.items() if interval is not None}
        print(json.dumps({**done.metrics, "intervals": known, "folder": str(done.folder)}))
        return
    for name, value in done.metrics.items():
        print(f"{name}: {value:.6g}{interval_text(name, value, done.facts)}")
    print(f"confusion matrix, accuracy by class and worst errors: {done.folder}")


def _predict(config: RunConfig, arguments: argparse.Namespace) -> None:
    from experiments.predict import SUFFIXES, predict_photos, prediction_table
    from experiments.tracking.exports import locate_export
    from lightning_modules.listing import find_photos

    photos = find_photos(arguments.images, SUFFIXES)
    predictions = predict_photos(photos, locate_export(arguments.model, config), arguments.top_k)
    if arguments.json:
        print(json.dumps([prediction.to_dict() for prediction in predictions], indent=2))
    else:
        print(prediction_table(predictions))
    if any(prediction.error for prediction in predictions):
        raise CommandError(
            f"{sum(bool(prediction.error) for prediction in predictions)} of {len(predictions)} photos can't be read"
        )


def _report(config: RunConfig, arguments: argparse.Namespace) -> None:
    if arguments.output is not None:
        require_output_file("--output", arguments.output)
    from experiments.report.report import report_studies
    from experiments.study.study import load_study

    print(report_studies([load_study(config, name) for name in arguments.studies], config, arguments.output))


def _ui(config: RunConfig, arguments: argparse.Namespace) -> None:
    uri = tracking_uri(config)
    if uri.startswith(("http://", "https://")):
        raise UserError(f"tracking.uri {uri} is a server with a UI of its own: open it in a browser")
    require_free_port("--port", arguments.port)
    if arguments.dashboard is not None:
        require_free_port("--dashboard-port", arguments.dashboard_port)
    from experiments.runs.processes import start_process
    from experiments.tracking.check import artifact_folder, check_tracking
    from experiments.tracking.server import serve_mlflow
    from experiments.tracking.store import save_views
    from experiments.tracking.views import CHARTS, TABLE, view_link

    check_tracking(config)
    links: list[str] = []
    if arguments.dashboard is not None:
        from experiments.study.dashboard import dashboard_server

        dashboard = dashboard_server(
            config, arguments.dashboard or None, arguments.dashboard_port, arguments.allow_host
        )
        threading.Thread(target=dashboard.serve_forever, name="dashboard", daemon=True).start()
        links.append(f"Optuna at http://127.0.0.1:{dashboard.server_port} (a copy to read)")
    address = f"http://127.0.0.1:{arguments.port}"
    links.append(f"MLflow at {address} (Ctrl-C ends it)")
    for name, experiment_id in save_views(config).items():
        links.append(f"{name}, runs:   {view_link(address, experiment_id, TABLE)}")
        links.append(f"{name}, charts: {view_link(address, experiment_id, CHARTS)}")
    say("starting MLflow, which takes some seconds")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end of this process ends both
    served = (uri, artifact_folder(config), arguments.port, arguments.allow_host)
    server = start_process(serve_mlflow, served, name="mlflow")
    try:
        if _answers(server, arguments.port):
            print("\n".join(links), flush=True)
        server.join()
    finally:
        server.terminate()
        server.join()
    if server.exitcode:
        raise CommandError(f"MLflow ended with exit code {server.exitcode}: see what it said above")


def _answers(server: BaseProcess, port: int) -> bool:
    """Wait until MLflow answers; false if it ends before."""
    import http.client  # urllib would ask a proxy

    while server.is_alive():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.client.OK:
                return True
        except (OSError, http.client.HTTPException):  # not yet
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    return False


def command_parser() -> argparse.ArgumentParser:
    """The parser of the commands and their own options; the remaining arguments are fields of the config."""
    text = "Fine-tune an image classifier, sweep over its settings and compare the runs in MLflow."
    return command_line("python -m experiments", text, _add_commands, SETTINGS_TYPES)


def command_line(
    program: str, text: str, add_commands: Callable[[Any], None], settings_types: Mapping[str, type]
) -> argparse.ArgumentParser:
    """A parser of commands whose help ends with the fields that the command uses.

    Args:
        add_commands: gets what `add_subparsers` returns; each parser that it adds has a default `uses`, the names of
            the command and of further commands that it runs.
        settings_types: as SETTINGS_TYPES.
    """

    class CommandParser(argparse.ArgumentParser):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.add_argument("--traceback", action="store_true", help="show the traceback of every error")

        def format_help(self) -> str:
            listed = [
                fields_help(settings_type, self.get_default("uses"), prefix)
                for prefix, settings_type in settings_types.items()
            ]
            return "\n".join([super().format_help(), "Fields, set as --section.field value\n", *listed])

    parser = argparse.ArgumentParser(prog=program, description=text, allow_abbrev=False)
    add_commands(parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser))
    return parser


def _add_commands(commands: Any) -> None:
    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--config", type=Path, metavar="PRESET", help="YAML preset, such as conf/quick.yaml")
        command.set_defaults(command=run, uses=(name,))
        return command

    sweep = add("sweep", _sweep, "Search for the best settings; the same command continues a study.")
    sweep.add_argument(
        "--more",
        type=_number(0),
        default=0,
        metavar="N",
        help="add N trials to the finished ones; an interrupted addition is completed first",
    )
    train = add("train", _train, "Train one model, score it on the test split and register it.")
    train.add_argument("--from-best", metavar="STUDY", help="with the settings of the study's best trial")
    evaluate = add("evaluate", _evaluate, "Score a model on a split of a data set.")
    predict = add("predict", _predict, "Name what is on photos.")
    predict.add_argument("images", nargs="+", type=Path, metavar="PHOTO", help="photos, and folders of them")
    predict.add_argument("--top-k", type=_number(1), default=5, metavar="K", help="classes to show (default 5)")
    for command in (evaluate, predict):
        command.add_argument(
            "--model",
            required=True,
            help="export folder, or registry URI such as models:/NAME@champion",
        )
        command.add_argument("--json", action="store_true", help="print JSON")
    evaluate.add_argument("--split", choices=("valid", "test"), default="test")
    text = "Write the report of studies and of all runs on the same photos: one HTML page that needs no network."
    report = add("report", _report, text)
    report.add_argument("studies", nargs="+", metavar="STUDY")
    report.add_argument("--output", type=Path, metavar="FILE", help="by default report.html beside the study")
    ui = add("ui", _ui, "Open MLflow on the local runs, on 127.0.0.1 only.")
    ui.add_argument("--port", type=_number(1, 65_535), default=5000)
    text = "take requests under this host name too, which a proxy such as SageMaker Studio's passes on; may be repeated"
    ui.add_argument("--allow-host", action="append", default=[], type=_host_name, metavar="NAME", help=text)
    text = "Optuna's dashboard too, on that study or on the one that changed last"
    ui.add_argument("--dashboard", nargs="?", const="", metavar="STUDY", help=text)
    ui.add_argument("--dashboard-port", type=_number(0, 65_535), default=8080, metavar="PORT", help="default 8080")


def _number(low: int, high: int = sys.maxsize) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def read(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be {low}{f'..{high}' if high < sys.maxsize else ' or more'}")
        return int(text)

    read.__name__ = "whole number"
    return read


def _host_name(text: str) -> str:
    """An argparse type: the name of a host, without scheme, port, path and wildcards."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", text.lower()):
        raise argparse.ArgumentTypeError(f"must be the name of a host alone, such as studio.example.com, got {text!r}")
    return text.lower()


def _ui_address(config: RunConfig) -> str:
    """Where to see the runs: the address of a tracking server, or the command that opens a UI on a database."""
    if tracking_uri(config).startswith(("http://", "https://")):
        return f"{public_url(tracking_uri(config))} in a browser"
    fields = [] if config.output_dir == RunConfig.output_dir else ["--output_dir", str(config.output_dir)]
    fields += [] if config.tracking.uri is None else ["--tracking.uri", public_url(config.tracking.uri)]
    return invocation("experiments", "ui", *fields)
