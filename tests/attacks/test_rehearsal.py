"""The rehearsal under attack: by a web page, by another user, by a job, and by somebody with half a key.

Each attack is made as it was made first: with raw sockets, as a browser or curl would. Real clients show that their
owners still get in.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagemaker_launch.rehearsal.server import IDLE_SECONDS
from tests.cloud import CLOUD
from tests.conftest import REPOSITORY
from tests.integration.test_rehearsal import OWN_SCRIPT, ROLE, Rehearsal, channel, lines, rehearsal, train, wait
from tests.signing import control, signed_headers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("job_images")]
ATTACKER = "attacker.example"
JOB = {
    "TrainingJobName": "taken-over",
    "RoleArn": ROLE,
    "AlgorithmSpecification": {"TrainingImage": OWN_SCRIPT, "TrainingInputMode": "File"},
    "InputDataConfig": [channel("code", "s3://bucket/code/taken-over/")],
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
    "StoppingCondition": {"MaxRuntimeInSeconds": 300},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with rehearsal(tmp_path_factory.mktemp("rehearsal"), "--grace", "1") as running:
        running.client("s3").put_object(Bucket="bucket", Key="mine", Body=b"my data")
        yield running


@pytest.fixture
def root(server: Rehearsal) -> Path:
    return Path(server.process.args[server.process.args.index("--root") + 1])  # type: ignore[index]


def raw(server: Rehearsal, request: bytes) -> tuple[int, bytes]:
    """Send bytes; the status and all that came back."""
    port = int(server.url.rpartition(":")[2])
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(request)
        # A refusal may come before the server has read everything.
        with contextlib.suppress(ConnectionError):
            connection.shutdown(socket.SHUT_WR)
            while received := connection.recv(65536):
                answer += received
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer.split()[1]), answer


def browser_request(server: Rehearsal, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """What a browser sends for a page of the attacker."""
    host = server.url.removeprefix("http://")
    sent = {"Host": host, "Origin": f"http://{ATTACKER}", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    sent |= {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    return (
        f"{method} {path} HTTP/1.1\r\n{''.join(f'{k}: {v}{chr(13)}{chr(10)}' for k, v in sent.items())}\r\n".encode()
        + body
    )


@contextlib.contextmanager
def untouched(server: Rehearsal) -> Iterator[None]:
    """Nothing that is kept changes within it."""

    def state() -> list[object]:
        s3, sagemaker = server.client("s3"), server.client("sagemaker")
        return [
            [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]],
            [(one["Key"], one["ETag"]) for one in s3.list_objects_v2(Bucket="bucket")["Contents"]],
            s3.list_multipart_uploads(Bucket="bucket").get("Uploads", []),
            [job["TrainingJobName"] for job in sagemaker.list_training_jobs()["TrainingJobSummaries"]],
            [user["UserName"] for user in server.client("iam").list_users()["Users"]],
            control(server.environment, "GET", "faults")["settings"],
        ]

    before = state()
    yield
    assert state() == before


def test_a_web_page_can_neither_upload_code_nor_start_it(server: Rehearsal, tmp_path: Path) -> None:
    script = f"import pathlib; pathlib.Path({str(tmp_path / 'taken-over')!r}).touch()".encode()
    job = json.dumps(JOB).encode()
    target = {"X_Amz_Target": "SageMaker.CreateTrainingJob", "Content_Type": "application/x-amz-json-1.1"}
    scope = "AKIAIOSFODNN7EXAMPLE/20261130/us-east-1"
    forged = f"AWS4-HMAC-SHA256 Credential={scope}/sagemaker/aws4_request, SignedHeaders=host, Signature={'0' * 64}"
    old = forged.replace("AKIAIOSFODNN7EXAMPLE", "rehearsal")
    attempts = [
        browser_request(server, "PUT", "/bucket/code/taken-over/train.py", script),
        browser_request(server, "PUT", "/bucket/code/taken-over/train.py", script, Authorization=old),
        browser_request(server, "POST", "/", job, **target),
        browser_request(server, "POST", "/", job, **target, Authorization=forged),
        # Without a preflight: a form, an image, a script tag, a beacon.
        browser_request(server, "POST", "/", job, Content_Type="text/plain"),
        browser_request(
            server,
            "POST",
            "/",
            b"Action=CreateUser&UserName=me&Version=2010-05-08",
            Content_Type="application/x-www-form-urlencoded",
        ),
        browser_request(server, "POST", "/bucket", b"--x\r\n", Content_Type="multipart/form-data; boundary=x"),
        browser_request(server, "GET", "/bucket/mine"),
        browser_request(server, "GET", "/moto-api/data.json"),
        browser_request(server, "POST", "/moto-api/reset"),
        browser_request(server, "POST", "/moto-api/recorder/replay-recording"),
        browser_request(server, "GET", "/latest/meta-data/iam/security-credentials/x"),
        browser_request(server, "POST", "/rehearsal/interrupt/taken-over"),
        browser_request(server, "POST", "/rehearsal/faults?rate=0.9"),
        browser_request(server, "POST", "/endpoints/mine/invocations", b"x"),
        *(browser_request(server, "OPTIONS", path, Access_Control_Request_Method="PUT") for path in ("/", "/bucket/x")),
    ]
    with untouched(server):
        for request in attempts:
            status, answer = raw(server, request)
            assert status in (400, 403), request
            assert b"access-control" not in answer.lower(), request
            assert b"my data" not in answer
    assert not (tmp_path / "taken-over").exists()


METHODS = st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
PATHS = st.one_of(
    st.sampled_from(
        ["/", "/bucket", "/bucket/mine", "/bucket?uploads", "/moto-api/reset", "/rehearsal/faults?rate=0.5"]
    ),
    st.sampled_from(
        ["/sagemaker_us-east-1/", "/moto_api/reset", "//moto-api/reset", "/%6doto-api/reset", "/x/../moto-api/reset"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30).map(
        lambda text: f"/{text}"
    ),
)
HOSTS = st.sampled_from(
    ["127.0.0.1", "localhost", ATTACKER, f"127.0.0.1.{ATTACKER}", "0.0.0.0", "moto_api", "[::1", ""]
)
ORIGINS = st.sampled_from(
    [None, "null", f"http://{ATTACKER}", "http://127.0.0.1:5000", "chrome-extension://abc", "file://"]
)
TARGETS = st.sampled_from(
    [None, "SageMaker.CreateTrainingJob", "Logs_20140328.DeleteLogGroup", "SageMaker.DeleteEndpoint"]
)
SIGNED = "AWS4-HMAC-SHA256 Credential={key}/{day}/us-east-1/{service}/aws4_request, SignedHeaders={names}, Signature="
AUTHORIZATIONS = st.one_of(
    st.sampled_from(
        [None, "", "Basic YTpi", "Bearer x", "AWS AKIAIOSFODNN7EXAMPLE:frJIUN8DYpKDtOLCwo//yllqDzg=", SIGNED]
    ),
    st.builds(
        SIGNED.format,
        # `{key}` becomes the launcher's: who overhears a request knows the access key, but not the secret.
        key=st.sampled_from(["{key}", "AKIAIOSFODNN7EXAMPLE", "rehearsal"]),
        day=st.sampled_from(["20261130", "20130524"]),
        service=st.sampled_from(["s3", "sagemaker", "iam", "rehearsal", "moto_api", "execute-api"]),
        names=st.sampled_from(["", "host", "host;x-amz-date", "host;x-amz-date;x-amz-target;content-type"]),
    ).map(lambda text: text + "0" * 64),
)
BODIES = st.sampled_from(
    [b"", b"{}", b"Action=AssumeRoleWithSAML&Version=2011-06-15", json.dumps(JOB).encode(), b"\x00" * 100]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(METHODS, PATHS, HOSTS, ORIGINS, TARGETS, AUTHORIZATIONS, BODIES)
def test_nothing_passes_without_the_secret(
    server: Rehearsal,
    method: str,
    path: str,
    host: str,
    origin: str | None,
    target: str | None,
    authorization: str | None,
    body: bytes,
) -> None:
    headers = {"Host": f"{host}:5000", "Content-Length": str(len(body))}
    headers |= {"Origin": origin} if origin is not None else {}
    headers |= {"X-Amz-Target": target} if target is not None else {}
    if authorization is not None:
        known = authorization.replace("{key}", server.environment["AWS_ACCESS_KEY_ID"])
        headers |= {"Authorization": known, "X-Amz-Date": "20261130T000000Z"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    status, answer = raw(server, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    assert status in (400, 403, 501), answer[:500]
    assert b"access-control" not in answer.lower()
    assert b"my data" not in answer


def test_a_name_that_was_rebound_to_this_machine_is_refused_even_with_a_signature(server: Rehearsal) -> None:
    for host in (f"{ATTACKER}:5000", "0.0.0.0:5000", "169.254.169.254"):
        url = f"http://{host}/bucket/mine"
        headers = signed_headers(server.environment, "GET", url, "s3")
        answer = requests.get(f"{server.url}/bucket/mine", headers={**headers, "Host": host}, timeout=20)
        assert answer.status_code == 403 and b"my data" not in answer.content
    url = f"{server.url}/bucket/mine"
    headers = signed_headers(server.environment, "GET", url, "s3")
    assert requests.get(url, headers=headers, timeout=20).content == b"my data"
    assert requests.get(url, headers={**headers, "Origin": server.url}, timeout=20).status_code == 403


def test_an_overheard_request_can_not_be_turned_into_another(server: Rehearsal) -> None:
    """Of a presigned URL that was passed on, and of a signed request."""
    s3 = server.client("s3")
    url = s3.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "mine"}, ExpiresIn=60)
    assert requests.get(url, timeout=20).content == b"my data"
    attempts = [
        ("GET", url.replace("mine", "other"), {}),
        ("PUT", url, {}),
        ("DELETE", url, {}),
        ("POST", url, {"X-Amz-Target": "SageMaker.CreateTrainingJob"}),
        ("GET", url, {"X-Amz-Target": "SageMaker.ListTrainingJobs"}),
        ("GET", url.replace("/bucket/mine", "/moto-api/data.json"), {}),
        ("GET", f"{url}&uploads", {}),
    ]
    body = b"{}"
    target = {"X_Amz_Target": "SageMaker.ListTrainingJobs", "Content_Type": "application/x-amz-json-1.1"}
    headers = signed_headers(server.environment, "POST", f"{server.url}/", "sagemaker", body, **target)
    assert requests.post(f"{server.url}/", body, headers=headers, timeout=20).status_code == 200
    stolen = {**headers, "X-Amz-Target": "SageMaker.CreateTrainingJob"}
    attempts += [("POST", f"{server.url}/", stolen), ("POST", f"{server.url}/rehearsal/faults?rate=0.9", headers)]
    with untouched(server):
        for method, address, sent in attempts:
            answer = requests.request(method, address, headers=sent, data=body, timeout=20)
            assert answer.status_code in (400, 403), (method, address)
        assert requests.post(f"{server.url}/", b'{"x": 1}', headers=headers, timeout=20).status_code == 400


@pytest.mark.parametrize("version", ["s3v4", None])
def test_presigned_urls_work_until_they_expire(server: Rehearsal, version: str | None) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(signature_version=version),
    )
    for key in ("presigned", "a b/ä+c%.txt"):
        where = {"Bucket": "bucket", "Key": key}
        put = s3.generate_presigned_url("put_object", where, ExpiresIn=60)
        assert requests.put(put, data=io.BytesIO(b"sent by URL"), timeout=20).status_code == 200
        assert requests.get(s3.generate_presigned_url("get_object", where), timeout=20).content == b"sent by URL"
        expired = s3.generate_presigned_url("get_object", where, ExpiresIn=-5 if version is None else 1)
        if version is not None:
            time.sleep(2.5)
        answer = requests.get(expired, timeout=20)
        assert answer.status_code == 403 and b"Request has expired" in answer.content
        s3.delete_object(**where)


def test_uploads_of_every_kind_work(server: Rehearsal) -> None:
    environment, content = server.environment, os.urandom(200_000)
    url, digest = f"{server.url}/bucket/sent", hashlib.sha256(content).hexdigest()

    def kept() -> bytes:
        found: bytes = server.client("s3").get_object(Bucket="bucket", Key="sent")["Body"].read()
        server.client("s3").delete_object(Bucket="bucket", Key="sent")
        return found

    unsigned = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"payload_signing_enabled": False}, request_checksum_calculation="when_required"),
    )
    unsigned.put_object(Bucket="bucket", Key="sent", Body=content)
    assert kept() == content
    unsigned.upload_fileobj(io.BytesIO(content * 60), "bucket", "sent")  # 12 MB: several parts
    assert kept() == content * 60
    # By curl, and in HTTP's own chunks.
    key = f"{environment['AWS_ACCESS_KEY_ID']}:{environment['AWS_SECRET_ACCESS_KEY']}"
    command = ["curl", "-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", key, "--upload-file", "-", url]
    command[3:3] = ["-H", f"x-amz-content-sha256: {digest}", "-H", "Transfer-Encoding: chunked"]
    if shutil.which("curl"):
        subprocess.run(command, input=content, check=True, timeout=60)
        assert kept() == content
    # In S3's chunks, each of which is signed.
    for trailer in (b"", b"x-amz-checksum-crc32:AAAAAA==\n"):
        headers, body = in_signed_chunks(server, url, content, trailer)
        assert requests.put(url, body, headers=headers, timeout=20).status_code == 200
        assert kept() == content
        changed = body.replace(content[:100], content[1:101], 1)
        answer = requests.put(url, changed, headers=headers, timeout=20)
        assert answer.status_code == 403 and b"SignatureDoesNotMatch" in answer.content
    # In chunks without signatures, as boto3 sends them over TLS.
    headers = {"x_amz_content_sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "content_encoding": "aws-chunked"}
    headers |= {"x_amz_decoded_content_length": str(len(content)), "x_amz_trailer": "x-amz-checksum-crc32"}
    signed = signed_headers(environment, "PUT", url, "s3", **headers)
    body = b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n" % (len(content), content)
    assert requests.put(url, body, headers=signed, timeout=20).status_code == 200
    assert kept() == content


def in_signed_chunks(server: Rehearsal, url: str, content: bytes, trailer: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of an upload by AmazonS3/latest/API/sigv4-streaming.html, written from that page alone."""
    credentials = Credentials(server.environment["AWS_ACCESS_KEY_ID"], server.environment["AWS_SECRET_ACCESS_KEY"])
    kind = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" + ("-TRAILER" if trailer else "")
    headers = {"x-amz-content-sha256": kind, "content-encoding": "aws-chunked"}
    headers |= {"x-amz-decoded-content-length": str(len(content))} | (
        {"x-amz-trailer": "x-amz-checksum-crc32"} if trailer else {}
    )
    request, signer = AWSRequest("PUT", url, headers=headers), SigV4Auth(credentials, "s3", "us-east-1")
    signer.add_auth(request)
    previous = request.headers["Authorization"].rpartition("Signature=")[2]
    stamp, scope, empty = (
        request.context["timestamp"],
        signer.credential_scope(request),
        hashlib.sha256(b"").hexdigest(),
    )
    body = b""
    for chunk in (content[:100_000], content[100_000:], b""):
        covered = ["AWS4-HMAC-SHA256-PAYLOAD", stamp, scope, previous, empty, hashlib.sha256(chunk).hexdigest()]
        previous = signer.signature("\n".join(covered), request)
        body += b"%x;chunk-signature=%s\r\n%s\r\n" % (len(chunk), previous.encode(), chunk)
    if trailer:
        covered = ["AWS4-HMAC-SHA256-TRAILER", stamp, scope, previous, hashlib.sha256(trailer).hexdigest()]
        signature = signer.signature("\n".join(covered), request)
        body = (
            body.removesuffix(b"\r\n")
            + trailer.rstrip()
            + b"\r\nx-amz-trailer-signature:"
            + signature.encode()
            + b"\r\n\r\n"
        )
    return dict(request.headers.items()), body


def test_a_proxy_on_another_port_still_works(server: Rehearsal) -> None:
    """As `Host` it hands on the address that the client called."""
    port = int(server.url.rpartition(":")[2])

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as service:
                back = threading.Thread(target=copy, args=(service, self.request))
                back.start()
                copy(self.request, service)
                back.join()

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        proxied = {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}"}
        client = Rehearsal(proxied, server.process).client("s3")
        assert client.get_object(Bucket="bucket", Key="mine")["Body"].read() == b"my data"
        assert "counts" in control(proxied, "GET", "faults")
        proxy.shutdown()


def test_curl_and_the_aws_cli_get_in_with_the_printed_variables(server: Rehearsal) -> None:
    environment = {**os.environ, **server.environment, "AWS_EC2_METADATA_DISABLED": "true"}
    key = f"{environment['AWS_ACCESS_KEY_ID']}:{environment['AWS_SECRET_ACCESS_KEY']}"
    if shutil.which("curl"):
        command = ["curl", "-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:rehearsal", "--user", key]
        done = subprocess.run([*command, f"{server.url}/rehearsal/faults"], capture_output=True, check=True, timeout=60)
        assert json.loads(done.stdout)["settings"]["rate"] == 0
    if shutil.which("aws") is None:
        pytest.skip("needs the AWS CLI")
    done = subprocess.run(
        ["aws", "s3", "cp", "s3://bucket/mine", "-"], env=environment, capture_output=True, timeout=60
    )
    assert done.stdout == b"my data", done.stderr
    done = subprocess.run(["aws", "sagemaker", "list-training-jobs"], env=environment, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["TrainingJobSummaries"] == []
    wrong = environment | {"AWS_SECRET_ACCESS_KEY": "rehearsal"}
    done = subprocess.run(["aws", "sagemaker", "list-training-jobs"], env=wrong, capture_output=True, timeout=60)
    assert done.returncode != 0 and b"InvalidSignatureException" in done.stderr


def test_the_lines_that_rehearse_prints_are_pasted_into_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sagemaker_launch", "rehearse", "--cloud", str(CLOUD), f"--output_dir={tmp_path}"]
    command += ["--python", sys.executable]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        printed = "".join(process.stdout.readline() for _ in range(5))
        own = "Bucket='experiments-rehearsal', Prefix='experiments/'"
        ask = f"import boto3; print(boto3.client('s3').list_objects_v2({own})['KeyCount'])"
        shell = ["sh", "-c", f'{printed}exec "$0" -c "$1"', sys.executable, ask]
        done = subprocess.run(shell, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == "0", done.stderr
        secret = re.search("AWS_SECRET_ACCESS_KEY=(\\S+)", printed)
        assert secret is not None
        log = (tmp_path / "rehearsal" / "server.log").read_text()
        assert secret[1] not in log and stat.S_IMODE((tmp_path / "rehearsal").stat().st_mode) == 0o700
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


SNOOP = """
    import json, os, pathlib, urllib.error, urllib.request
    found = {name: value for name, value in os.environ.items() if "KEY" in name or "TOKEN" in name}
    texts, roots = [], [pathlib.Path(ROOT), pathlib.Path("/proc")]
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                path = pathlib.Path(folder, name)
                if root.name != "proc" or name in ("environ", "cmdline"):
                    try:
                        texts.append(path.read_bytes()[:10_000_000])
                    except OSError:
                        pass
    import hashlib
    secrets = [hashlib.sha256(text[i:i+40]).hexdigest() for text in texts for i in positions(text)]
    try:
        urllib.request.urlopen(os.environ["AWS_ENDPOINT_URL"] + "/moto-api/reset", data=b"", timeout=10)
        reset = 200
    except urllib.error.HTTPError as error:
        reset = error.code
    told = {"keys": sorted(found), "id": found["AWS_ACCESS_KEY_ID"], "secrets": secrets, "reset": reset}
    print("REPORT " + json.dumps(told))
"""


def test_a_job_has_the_key_of_its_role_and_finds_no_other(server: Rehearsal, root: Path) -> None:
    launcher = server.environment["AWS_SECRET_ACCESS_KEY"]
    # By its hash: the script is stored below the root, and must not contain what it looks for.
    wanted, start = hashlib.sha256(launcher.encode()).hexdigest(), launcher[:2]
    positions = f"""
    import re
    ROOT = {str(root)!r}
    def positions(text):
        return [found.start() for found in re.finditer(re.escape({start!r}.encode()), text)]
    """
    train(server, "snoop", positions.replace("\n    ", "\n") + SNOOP.replace("\n    ", "\n"))
    job = wait(server, "snoop")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    [line] = [line for line in lines(server, "snoop") if line.startswith("REPORT ")]
    told = json.loads(line.removeprefix("REPORT "))
    assert told["keys"] == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert told["id"].startswith("AKIA") and told["id"] != server.environment["AWS_ACCESS_KEY_ID"]
    assert wanted not in told["secrets"]
    assert told["reset"] == 403
    own = [path for path in root.rglob("*") if path.is_file() and launcher.encode() in path.read_bytes()]
    assert own == []


def test_a_jobs_key_does_not_steer_the_rehearsal(server: Rehearsal) -> None:
    train(server, "keys", 'import json, os; print("REPORT " + json.dumps(dict(os.environ)))')
    wait(server, "keys")
    [line] = [line for line in lines(server, "keys") if line.startswith("REPORT ")]
    role = json.loads(line.removeprefix("REPORT "))
    client = Rehearsal({**role, "AWS_ENDPOINT_URL": server.url}, server.process).client("s3")
    assert client.get_object(Bucket="bucket", Key="mine")["Body"].read() == b"my data"
    with pytest.raises(requests.HTTPError, match="403"):
        control({**role, "AWS_ENDPOINT_URL": server.url}, "POST", "faults?rate=0.5")
    assert control(server.environment, "GET", "faults")["settings"]["rate"] == 0


def test_connections_that_send_nothing_are_closed(server: Rehearsal) -> None:
    port, threads = int(server.url.rpartition(":")[2]), psutil.Process(server.process.pid).num_threads()
    half = b"PUT /bucket/mine HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(100)]
        for connection in idle[:50]:
            connection.sendall(half)
        assert server.client("s3").get_object(Bucket="bucket", Key="mine")["Body"].read() == b"my data"
        started = time.monotonic()
        assert [connection.recv(1000) for connection in idle] == [b""] * 100
        assert time.monotonic() - started < IDLE_SECONDS + 10
    assert psutil.Process(server.process.pid).num_threads() <= threads + 5


def test_another_user_can_neither_read_its_files_nor_reach_it_from_outside(server: Rehearsal, root: Path) -> None:
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    listening = [
        one for one in psutil.Process(server.process.pid).net_connections() if one.status == psutil.CONN_LISTEN
    ]
    assert listening and all(one.laddr.ip == "127.0.0.1" for one in listening)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert not any(server.environment["AWS_SECRET_ACCESS_KEY"] in word for word in process.cmdline())


@pytest.mark.parametrize("names", [["../out"], ["/tmp/hostile-out"], ["a/../../out"], ["link", "link/out"], ["hard"]])
def test_an_archive_of_a_model_writes_nothing_outside_of_its_folder(tmp_path: Path, names: list[str]) -> None:
    from sagemaker_launch.rehearsal.endpoints.serving_process import unpack
    from sagemaker_launch.rehearsal.machine.objects import DataError

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            if name in ("link", "hard"):
                member.type = tarfile.SYMTYPE if name == "link" else tarfile.LNKTYPE
                member.linkname = str(tmp_path / "elsewhere") if name == "link" else "../../../etc/passwd"
                archive.addfile(member)
            else:
                member.size = 4
                archive.addfile(member, io.BytesIO(b"evil"))
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    before = sorted(path for path in tmp_path.rglob("*") if folder not in path.parents)
    # tarfile's filter takes the first slash off and extracts; everything else it refuses.
    outcome = (
        contextlib.nullcontext() if names[0].startswith("/") else pytest.raises(DataError, match="Failed to extract")
    )
    with outcome:
        unpack(packed.getvalue(), folder, "s3://bucket/model.tar.gz")
    assert sorted(path for path in tmp_path.rglob("*") if folder not in path.parents) == before
    assert not Path("/tmp/hostile-out").exists()
