"""Our server beside AWS's two: one archive, one machine, one run.

python -m benchmarks.serving [--weights PATH/resnet50.safetensors] [--photos PATH/images]

All serve the same ResNet50 at 224 px from one packed and unpacked archive: our server as its image starts it, in
float32 and in int8; Ray Serve by AWS's own start script and adapter, as `deploy --image aws`; and TorchServe 0.12 with
AWS's toolkit as AWS's image starts it, a worker a core with PyTorch's own number of threads. All run all the time, and
while one is measured the others have nothing to do but what they do by themselves. Clients are threads of this process
that send the next photo when the last one is answered. Rounds alternate; each answer is compared with the scores of the
export. `--only ours` leaves AWS's servers out, and `--only ray` TorchServe. `ready` is the time from the start of a
process until our server answers a ping, and AWS's a request, as they answer a ping before the model is loaded; the time
to build AWS's environments, once, is not in it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import torch
from torch import nn

from benchmarks.common import parser, report, spread, write_photos
from experiments.int8 import GOLDEN_SHARE
from lightning_modules.export import write_export
from lightning_modules.inference import (
    Preprocessing,
    build_network,
    decode_image,
    load_export,
    read_safetensors,
)
from lightning_modules.openvino_cpu import INT8_FOLDER, INT8_GOLDEN, convert, file_hashes, quantize, write_converted
from sagemaker_launch.aws.prices import known_price
from sagemaker_launch.endpoints.budget import SERVERLESS
from sagemaker_launch.rehearsal.endpoints import ray_serve, torchserve
from sagemaker_launch.rehearsal.machine.image import Interpreter, build_image
from sagemaker_launch.rehearsal.machine.namespaces import find_namespaces
from sagemaker_launch.serving.engine import golden_tolerance
from sagemaker_launch.shipping.archive import pack_model, unpack_model

REPOSITORY = Path(__file__).resolve().parent.parent
CONCURRENCY = (1, 4, 16)
THEIRS, OURS, INT8 = "TorchServe, AWS's toolkit", "our server", "our server in int8"
RAY = "Ray Serve, AWS's adapter"
PARTS = ("decode_ms", "total_ms")
"""Parts of a line of our server's log."""
INSTANCE_TYPE, SERVERLESS_GB = "ml.c5.xlarge", 3
"""What costs are computed for: the defaults of `cloud.endpoint`."""
TOLERANCE = 1e-3
"""Of a logit."""


@dataclass(frozen=True)
class Server:
    """A server that is measured."""

    connection: Callable[[], http.client.HTTPConnection]
    """Makes a connection to it, which opens with the first request."""
    pid: int
    tolerance: float = TOLERANCE
    """How far a logit may be from that of the export."""
    log: Path | None = None
    """Of our server: a line of JSON per request."""


def main() -> None:
    """Measure and report."""
    command = parser(__doc__ or "")
    command.add_argument("--weights", type=Path, help="a ResNet50 as .safetensors; default: random weights")
    command.add_argument("--photos", type=Path, default=REPOSITORY.parent / "shared" / "images", help="JPEG files")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--seconds", type=float, default=10, help="of each measurement")
    command.add_argument("--their-threads", type=int, help="OMP_NUM_THREADS of TorchServe; default: as AWS, not set")
    command.add_argument("--only", choices=("ours", "ray"), help="measure our server only, or it and Ray Serve")
    arguments = command.parse_args()
    namespaces = find_namespaces()
    if arguments.only != "ours" and (namespaces is None or not namespaces.root):
        sys.exit("error: AWS's servers need Linux namespaces made by root: start this as root, or with --only ours")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = _photos(arguments.photos, folder)
        model = unpack_model(
            pack_model(_export(folder, arguments.weights, photos[0]), folder / "model.tar.gz"), folder / "ml" / "model"
        )
        network = load_export(model)
        wanted = [network.score([decode_image(photo)])[0].tolist() for photo in photos]
        model_in_int8 = _in_int8(model, photos)
        bound = golden_tolerance(model_in_int8, "int8")
        with ExitStack() as stack:
            servers, engines, ready = {}, {}, {}
            for name, image, wanted_by in ((THEIRS, torchserve, (None,)), (RAY, ray_serve, (None, "ray"))):
                if arguments.only not in wanted_by:
                    continue
                assert namespaces is not None
                python = Interpreter.ask(Path(sys.executable))
                built = build_image(REPOSITORY / "runs" / "rehearsal-image", image.contents(), python)
                threads = arguments.their_threads if name == THEIRS else None
                alone = {"OMP_NUM_THREADS": str(threads)} if threads else {}
                started = time.perf_counter()
                theirs = stack.enter_context(
                    image.start(folder / image.__name__.rpartition(".")[2], model, built, namespaces, alone)
                )
                theirs.wait_until_ready(300)
                servers[name] = Server(theirs.connection, theirs.pid)
                ready[name] = time.perf_counter() - started
            for name, export, precision, tolerance in (
                (OURS, model, "float32", TOLERANCE),
                (INT8, model_in_int8, "int8", bound),
            ):
                started = time.perf_counter()
                url, pid, engines[name] = stack.enter_context(
                    _our_server(export.parent, folder / f"{precision}.log", precision)
                )
                ready[name] = time.perf_counter() - started
                servers[name] = Server(partial(_connection, url), pid, tolerance, folder / f"{precision}.log")
            figures = _measure(servers, photos, wanted, arguments.rounds, arguments.seconds)
    settings = {
        THEIRS: f"{os.cpu_count()} workers, OMP_NUM_THREADS {arguments.their_threads or 'not set'}",
        RAY: "one replica with all processors; ready includes 15 s of pauses in AWS's start script",
        **engines,
        "ready after": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in ready.items()),
        "load average at the end": os.getloadavg()[1],
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    }
    _report(figures, settings, arguments.json)


def _photos(folder: Path, work: Path) -> list[bytes]:
    files = sorted(folder.glob("*.jpg"))
    if not files:
        print(f"no JPEG files in {folder}: eight are made, of noise")
        write_photos(work / "photos", per_class=4, size=400)
        files = sorted((work / "photos" / "train").rglob("*.jpg"))
    return [file.read_bytes() for file in files]


def _export(folder: Path, weights: Path | None, photo: bytes) -> Path:
    torch.manual_seed(0)
    state = read_safetensors(weights) if weights else {}
    network = build_network("resnet50", len(state["fc.bias"]) if weights else 133)
    if weights:
        network.load_state_dict(
            {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        )
    else:
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        with torch.no_grad():
            network(torch.randn(8, 3, 224, 224))  # so that random weights score pictures differently
    (folder / "golden.jpg").write_bytes(photo)
    head = network.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    return write_export(
        network.eval(),
        folder / "export",
        backbone="resnet50",
        class_names=tuple(f"class {index}" for index in range(head.out_features)),
        preprocessing=Preprocessing(image_size=224, resize_size=256),
        metrics={},
        data={},
        config={},
        golden_photos=[folder / "golden.jpg"],
    )


def _in_int8(model: Path, photos: list[bytes]) -> Path:
    """The export folder with its network in int8 too, calibrated on the photos that are sent."""
    folder = model.parent.parent / "ml-int8" / "model"
    shutil.copytree(model, folder)
    loaded = load_export(model)
    crops = torch.stack([loaded.preprocessing.crop(decode_image(photo)) for photo in photos])
    exact = convert(loaded.network, loaded.preprocessing.image_size)
    (folder / INT8_FOLDER).mkdir()
    write_converted(quantize(exact, [loaded.preprocessing.normalise(crops)]), folder / INT8_FOLDER)
    scores = loaded.score_crops(list(crops))
    bound = GOLDEN_SHARE * float((scores.amax(1) - scores.amin(1)).max())
    (folder / INT8_GOLDEN).write_text(json.dumps({"tolerance": bound, "sha256": file_hashes(folder / INT8_FOLDER)}))
    return folder


@contextmanager
def _our_server(base: Path, log: Path, precision: str) -> Iterator[tuple[str, int, str]]:
    """Our server's address, process and what it says of its engine."""
    variables = {
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_BIND_TO_PORT": "0",
        "SERVING_HOST": "127.0.0.1",
        "SERVING_PRECISION": precision,
    }
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sagemaker_launch.serving"], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        while "ready at " not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(f"the server did not start: {log.read_text()}")
            time.sleep(0.02)
        lines = log.read_text().splitlines()
        (ready,) = [line for line in lines if "ready at " in line]
        (engine,) = [line for line in lines if "engine " in line]
        assert f"OpenVINO in {precision}" in engine, engine
        yield ready.rpartition(" ")[2], process.pid, engine
    finally:
        process.terminate()
        process.wait()


def _connection(url: str) -> http.client.HTTPConnection:
    address = urlsplit(url)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)


def _measure(
    servers: dict[str, Server],
    photos: list[bytes],
    wanted: list[list[float]],
    rounds: int,
    seconds: float,
) -> dict[str, dict[int, dict[str, list[float]]]]:
    """Rounds of all servers in turn: for each and each concurrency, lists of p50, p99, requests a second and peak."""
    kinds = ("p50_ms", "p99_ms", "requests_per_second", "peak_rss_mb", "pss_mb")
    figures: dict[str, dict[int, dict[str, list[float]]]] = {
        name: {level: defaultdict(list, {kind: [] for kind in kinds}) for level in CONCURRENCY} for name in servers
    }
    for turn in range(rounds + 1):
        for level in CONCURRENCY:
            # Who goes first changes, so that a machine that slows down or speeds up favours none.
            for name in sorted(servers, reverse=bool(turn % 2)):
                server = servers[name]
                before = len(_requests(server))
                with _peak(server.pid) as peak:
                    times, took = _drive(server, photos, wanted, level, seconds if turn else min(seconds, 5))
                if not turn:  # the first one warms up
                    continue
                found = figures[name][level]
                found["p50_ms"].append(1000 * statistics.median(times))
                found["p99_ms"].append(1000 * statistics.quantiles(times, n=100, method="inclusive")[98])
                found["requests_per_second"].append(len(times) / took)
                found["peak_rss_mb"].append(max(peak) / 1e6)
                found["pss_mb"].append(sum(process.memory_full_info().pss for process in _tree(server.pid)) / 1e6)
                if server.log and level == 1:
                    parts = _requests(server)[before:]
                    decoding, whole = (statistics.median(one[part] for one in parts) for part in PARTS)
                    found["decode_share"].append(decoding / whole)
    return figures


def _requests(server: Server) -> list[dict[str, float]]:
    """What our server's log says of each request so far."""
    lines = server.log.read_text().splitlines() if server.log else []
    return [json.loads(line) for line in lines if line.startswith("{")]


def _drive(
    server: Server, photos: list[bytes], wanted: list[list[float]], clients: int, seconds: float
) -> tuple[list[float], float]:
    """Seconds of each request, and of all together."""
    started = time.perf_counter()

    def client(number: int) -> tuple[list[float], list[tuple[int, int, bytes]]]:
        times, answers = [], []
        connection = server.connection()
        turn = number
        while time.perf_counter() - started < seconds:
            index = turn % len(photos)
            before = time.perf_counter()
            connection.request("POST", "/invocations", photos[index], {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            answers.append((index, response.status, response.read()))
            times.append(time.perf_counter() - before)
            turn += 1
        connection.close()
        return times, answers

    with ThreadPoolExecutor(clients) as pool:
        done = list(pool.map(client, range(clients)))
    took = time.perf_counter() - started
    for _, answers in done:
        for index, status, body in answers:
            assert status == 200, (server, status, body[:200])
            (row,) = json.loads(body)
            off = max(abs(logit - other) for logit, other in zip(row, wanted[index], strict=True))
            assert off < server.tolerance, (server, off)
    return [one for times, _ in done for one in times], took


def _tree(pid: int) -> list[psutil.Process]:
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


@contextmanager
def _peak(pid: int) -> Iterator[list[int]]:
    """Bytes of the process and its children, five times a second."""
    seen, over, tree = [0], threading.Event(), _tree(pid)

    def watch() -> None:
        while not over.wait(0.2):
            seen.append(sum(process.memory_info().rss for process in tree))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    over.set()
    thread.join()


def _usd_per_million(levels: dict[int, dict[str, dict[str, float]]]) -> tuple[float, float]:
    """Of an instance that always has photos, and of a serverless endpoint, which is billed for time and memory."""
    instance, gb_second = (known_price("us-east-1", unit) for unit in (INSTANCE_TYPE, SERVERLESS))
    assert instance is not None and gb_second is not None
    fastest = max(kinds["requests_per_second"]["median"] for kinds in levels.values())
    seconds = levels[1]["p50_ms"]["median"] / 1000
    return 1e6 * instance.usd_per_hour / 3600 / fastest, 1e6 * gb_second.usd_per_hour * SERVERLESS_GB * seconds


def _report(
    figures: dict[str, dict[int, dict[str, list[float]]]], settings: dict[str, object], path: Path | None
) -> None:
    spreads = {
        name: {level: {kind: spread(values) for kind, values in kinds.items()} for level, kinds in levels.items()}
        for name, levels in figures.items()
    }
    ratios = {
        f"{one} / {other}": {
            level: {
                kind: values["median"] / spreads[other][level][kind]["median"]
                for kind, values in kinds.items()
                if kind in spreads[other][level]  # only our server logs what decoding takes
            }
            for level, kinds in spreads[one].items()
        }
        for one, other in ((OURS, THEIRS), (OURS, RAY), (INT8, THEIRS), (INT8, RAY), (INT8, OURS))
        if {one, other} <= {*spreads}
    }
    rows = [
        (
            f"{pair}, {level} clients",
            f"p50 {one['p50_ms']:.2f}, p99 {one['p99_ms']:.2f}, throughput {one['requests_per_second']:.2f}, "
            f"peak memory {one['peak_rss_mb']:.2f} (shared pages counted once {one['pss_mb']:.2f})",
        )
        for pair, levels in ratios.items()
        for level, one in levels.items()
    ]
    for name, levels in spreads.items():
        for level, kinds in levels.items():
            p50, p99, rate = kinds["p50_ms"], kinds["p99_ms"], kinds["requests_per_second"]
            rows.append(
                (
                    f"  {name}, {level} clients",
                    f"p50 {p50['median']:.0f} ms ({p50['min']:.0f} to {p50['max']:.0f}), "
                    f"p99 {p99['median']:.0f} ms ({p99['min']:.0f} to {p99['max']:.0f}), "
                    f"{rate['median']:.1f}/s ({rate['min']:.1f} to {rate['max']:.1f}), "
                    f"peak {kinds['peak_rss_mb']['max']:.0f} MB (PSS {kinds['pss_mb']['max']:.0f})",
                )
            )
    for name, levels in spreads.items():
        if "decode_share" in levels[1]:
            rows.append((f"  {name}, decoding and resizing", f"{levels[1]['decode_share']['median']:.0%} of a request"))
        always, on_request = _usd_per_million(levels)
        # `deploy` refuses Ray Serve as a serverless endpoint.
        serverless = "" if name == RAY else f", serverless with {SERVERLESS_GB} GB {on_request:.2f}"
        rows.append(
            (
                f"  {name}, dollars per million photos",
                f"{INSTANCE_TYPE} {always:.2f}{serverless}, as fast as this machine",
            )
        )
    rows += [(f"  {name}", str(value)) for name, value in settings.items()]
    report(rows, {"ratios": ratios, "servers": spreads, "settings": settings}, path)


if __name__ == "__main__":
    main()
