"""The server's settings: an environment, read with suspicion."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagemaker_launch.serving.settings import read_settings


def test_without_any_the_server_is_what_sagemaker_asks_for() -> None:
    settings = read_settings({"PATH": "/bin"}, cuda=False)
    assert (settings.model, settings.host, settings.port) == (Path("/opt/ml/model"), "0.0.0.0", 8080)
    assert (settings.max_batch, settings.max_queue) == (8, 64)
    assert settings.timeout_seconds < 60
    assert settings.stop_seconds < 30
    assert settings.precision == "float32"


def test_a_gpu_takes_larger_batches_and_the_queue_grows_with_them() -> None:
    assert read_settings({}, cuda=True).max_batch == 32
    assert read_settings({}, cuda=True).max_queue == 256
    assert read_settings({"SERVING_MAX_BATCH": "4"}, cuda=True).max_queue == 32


def test_every_variable_is_read() -> None:
    settings = read_settings(
        {
            "SAGEMAKER_BASE_DIR": "/tmp/ml",
            "SAGEMAKER_BIND_TO_PORT": "9000",
            "SERVING_HOST": "127.0.0.1",
            "SERVING_MAX_BATCH": "3",
            "SERVING_MAX_WAIT_MS": "2.5",
            "SERVING_MAX_QUEUE": "7",
            "SERVING_TIMEOUT_SECONDS": "9",
            "SERVING_BODY_TIMEOUT_SECONDS": "2",
            "SERVING_DECODE_THREADS": "5",
            "SERVING_STOP_SECONDS": "0",
        },
        cuda=False,
    )
    assert settings.model == Path("/tmp/ml/model")
    assert (settings.port, settings.host) == (9000, "127.0.0.1")
    assert (settings.max_batch, settings.max_wait_seconds, settings.max_queue) == (3, 0.0025, 7)
    assert (settings.timeout_seconds, settings.body_timeout_seconds, settings.stop_seconds) == (9, 2, 0)
    assert settings.decode_threads == 5


def test_an_instance_with_a_gpu_needs_one() -> None:
    needs = {"SERVING_DEVICE": "cuda"}
    assert read_settings(needs, cuda=False).lacks_gpu
    assert read_settings({**needs, "SERVING_PRECISION": "bf16"}, cuda=False).lacks_gpu, "/ping says why"
    assert not read_settings(needs, cuda=True).lacks_gpu
    assert (
        not read_settings({}, cuda=False).lacks_gpu and not read_settings({"SERVING_DEVICE": ""}, cuda=False).lacks_gpu
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SERVING_DEVICE", "gpu", "SERVING_DEVICE must be cuda, which needs a GPU, or left out, got 'gpu'"),
        ("SERVING_MAX_BATCH", "0", "SERVING_MAX_BATCH must be a number 1..1024, got '0'"),
        ("SERVING_MAX_BATCH", "2.5", "SERVING_MAX_BATCH must be a whole number, got '2.5'"),
        ("SERVING_MAX_WAIT_MS", "soon", "SERVING_MAX_WAIT_MS must be a number 0..10000, got 'soon'"),
        ("SERVING_TIMEOUT_SECONDS", "nan", "SERVING_TIMEOUT_SECONDS must be a number 0.1..3600, got 'nan'"),
        ("SERVING_BODY_TIMEOUT_SECONDS", "51", "SERVING_BODY_TIMEOUT_SECONDS must be a number 0.1..50, got '51'"),
        ("SAGEMAKER_BIND_TO_PORT", "99999", "SAGEMAKER_BIND_TO_PORT must be a number 0..65535, got '99999'"),
        (
            "SERVING_MAX_BATCHES",
            "1",
            "SERVING_MAX_BATCHES is no setting of the server; there are SAGEMAKER_",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_rule_and_value(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.").replace("'", ".")):
        read_settings({name: value}, cuda=False)


def test_bfloat16_is_for_a_gpu() -> None:
    assert read_settings({"SERVING_PRECISION": "bf16"}, cuda=True).precision == "bf16"
    with pytest.raises(ValueError, match="SERVING_PRECISION may be bf16 on a GPU only"):
        read_settings({"SERVING_PRECISION": "bf16"}, cuda=False)
    with pytest.raises(ValueError, match="SERVING_PRECISION must be float32, bf16, int8, got 'fp16'"):
        read_settings({"SERVING_PRECISION": "fp16"}, cuda=True)


def test_int8_is_for_a_cpu() -> None:
    assert read_settings({"SERVING_PRECISION": "int8"}, cuda=False).precision == "int8"
    for environment, cuda in (({}, True), ({"SERVING_DEVICE": "cuda"}, False)):
        with pytest.raises(ValueError, match="SERVING_PRECISION may be int8 on a CPU only, and this is a GPU"):
            read_settings({"SERVING_PRECISION": "int8", **environment}, cuda=cuda)
