"""The allow-list: what is not on it is refused in the form of its service, for each operation that botocore has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from botocore.model import Shape

from sagemaker_launch.rehearsal.api import RehearsalResponse
from sagemaker_launch.rehearsal.calls import CALL, SERVICES, Call
from sagemaker_launch.rehearsal.rehearsed import FIELDS, OPERATIONS, Rehearsed, unrehearsed_fields
from sagemaker_launch.rehearsal.signatures import Environ, RefusedRequestError
from tests.unit.sagemaker_launch.rehearsal.endpoints.test_rules import CONFIG, MODEL
from tests.unit.sagemaker_launch.rehearsal.test_rules import TRAINING, TUNING
from tests.unsent import SESSION, answered, operation_model, service_model, written

REFUSAL = "works on AWS, but is not rehearsed"


def behind(environ: Environ, start_response: Any) -> Iterable[bytes]:
    """An application that moto stands for: it claims that everything is complete."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"passed": environ[CALL].operation}).encode()]


def refusal(service: str, operation: str, parameters: Any = None, *, protocol: str | None = None) -> str:
    """The message with which a call is refused; empty if it passes."""
    environ = written(service, operation, parameters, protocol=protocol)
    told: list[str] = []
    passed = b"".join(Rehearsed(behind)(dict(environ), lambda status, _: told.append(status)))
    if told == ["200 OK"]:
        assert json.loads(passed) == {"passed": operation}
        return ""
    error = answered(Rehearsed(behind), environ, service, operation, protocol=protocol)["Error"]
    assert error["Code"], f"{service}:{operation}: a client finds no code"
    return str(error["Message"])


@pytest.mark.parametrize("service", sorted(OPERATIONS))
def test_an_operation_passes_if_it_is_on_the_list_and_is_refused_otherwise(service: str) -> None:
    model = service_model(service)
    assert service in SERVICES[model.signing_name]
    assert OPERATIONS[service] <= set(model.operation_names)
    for operation in model.operation_names:
        if operation == "ListDirectoryBuckets":
            continue  # only its host tells it from ListBuckets
        message = refusal(service, operation, known(operation))
        assert (REFUSAL not in message) if operation in OPERATIONS[service] else message.endswith(REFUSAL), operation


def known(operation: str) -> Any:
    """Parameters that pass, where the least that an operation needs does not."""
    if operation in OPERATIONS["application-autoscaling"]:
        return {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
    return {
        "Search": {"Resource": "TrainingJob"},
        "GetObjectAttributes": {"Bucket": "mine", "Key": "k", "ObjectAttributes": ["ETag"]},
        "UntagResource": {"ResourceArn": "arn", "resourceArn": "arn", "TagKeys": ["x"], "tagKeys": ["x"]},
    }.get(operation)


@pytest.mark.parametrize(
    ("service", "operation", "changes"),
    [
        ("sagemaker", "DescribeTrainingJob", {"HTTP_X_AMZ_TARGET": "sagemaker.DescribeTrainingJob"}),
        ("sagemaker", "DescribeTrainingJob", {"HTTP_X_AMZ_TARGET": "SageMaker.describeTrainingJob"}),
        ("sagemaker", "DescribeTrainingJob", {"HTTP_X_AMZ_TARGET": "Logs_20140328.DescribeLogGroups"}),
        ("sagemaker", "DescribeTrainingJob", {"PATH_INFO": "/x", "RAW_URI": "/x"}),
        ("sagemaker", "DescribeTrainingJob", {"REQUEST_METHOD": "GET"}),
        ("sagemaker-runtime", "InvokeEndpoint", {"HTTP_X_AMZ_TARGET": "SageMaker.CreateTrainingJob"}),
        ("logs", "DescribeLogGroups", {"HTTP_X_AMZ_TARGET": "logs_20140328.DescribeLogGroups"}),
        ("logs", "DescribeLogGroups", {"HTTP_X_AMZ_TARGET": "x", "CONTENT_TYPE": "application/x-www-form-urlencoded"}),
        ("scheduler", "ListSchedules", {"HTTP_X_AMZ_TARGET": "SageMaker.ListEndpoints"}),
        ("s3", "ListBuckets", {"HTTP_X_AMZ_TARGET": "SageMaker.ListEndpoints"}),
        ("iam", "ListUsers", {"HTTP_X_AMZ_TARGET": "SageMaker.ListEndpoints"}),
        ("sts", "GetCallerIdentity", {"PATH_INFO": "/x", "RAW_URI": "/x"}),
    ],
)
def test_a_mixed_address_is_no_operation(service: str, operation: str, changes: dict[str, str]) -> None:
    """moto would take one half of the address from the header, and the other from path or signature."""
    environ = written(service, operation) | changes
    protocol = "json" if "HTTP_X_AMZ_TARGET" in environ and service in ("sagemaker-runtime", "scheduler") else None
    error = answered(Rehearsed(behind), environ, service, operation, protocol=protocol)["Error"]
    assert error["Code"] in ("UnknownOperationException", "InvalidAction", "MethodNotAllowed")
    assert error["Message"].endswith("in botocore's model")


def test_an_error_in_the_service_is_answered_in_its_form_and_a_lost_answer_is_none() -> None:
    def broken(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise NotImplementedError

    def lost(environ: Environ, start_response: Any) -> Iterable[bytes]:
        raise ConnectionAbortedError

    environ = written("sagemaker", "ListEndpoints")
    error = answered(Rehearsed(broken), environ, "sagemaker", "ListEndpoints")["Error"]
    assert error["Code"] == "InternalFailure"
    with pytest.raises(ConnectionAbortedError):
        Rehearsed(lost)(written("sagemaker", "ListEndpoints"), lambda *_: None)


@pytest.mark.slow
def test_every_service_of_aws_reads_the_refusal() -> None:
    for service in SESSION.get_available_services():
        model = service_model(service)
        for operation in model.operation_names[:1]:
            for protocol in model.metadata.get("protocols", [model.protocol]):
                if operation not in OPERATIONS.get(service, ()):
                    assert REFUSAL in refusal(service, operation, protocol=protocol), (service, protocol)


@pytest.mark.parametrize("protocol", ["smithy-rpc-v2-cbor", "json", "query"])
def test_a_service_of_several_protocols_answers_in_that_of_the_request(protocol: str) -> None:
    assert REFUSAL in refusal("cloudwatch", "PutDashboard", protocol=protocol)


def test_each_operation_of_sagemaker_on_the_list_is_answered_here_and_not_by_moto() -> None:
    for operation in OPERATIONS["sagemaker"]:
        own = [name for name in vars(RehearsalResponse) if name.replace("_", "") == operation.lower()]
        assert len(own) == 1, operation


def structures(shape: Shape, names: dict[str, str]) -> Iterator[Shape]:
    """The structures that a request can reach through members on the list."""
    if shape.type_name == "list":
        yield from structures(shape.member, names)
    elif shape.type_name == "map":
        yield from structures(shape.value, names)
    elif shape.type_name == "structure":
        yield shape
        for each in names[shape.name].split():
            inner = shape.members[each.partition("=")[0]]
            if shape.name != "SearchExpression" or inner.type_name != "list":
                yield from structures(inner, names)


@pytest.mark.parametrize("service", sorted(FIELDS))
def test_the_list_of_fields_has_each_structure_that_can_be_reached_and_no_other(service: str) -> None:
    names = dict(FIELDS[service])
    reached = {"NestedFilters", "Filter"} & set(names)
    for operation in OPERATIONS[service]:
        shape = operation_model(service, operation).input_shape
        reached |= set() if shape is None else {each.name for each in structures(shape, names)}
    assert reached == set(names)
    for name, members in names.items():
        shape = service_model(service).shape_for(name)
        for member, _, values in (each.partition("=") for each in members.split()):
            enum = shape.members[member].metadata.get("enum")
            assert enum is None or set(filter(None, values.split("|"))) <= set(enum), (name, member)


@pytest.mark.parametrize("service", sorted(FIELDS))
def test_a_member_that_is_not_listed_is_refused_also_one_that_aws_adds_next_year(service: str) -> None:
    checked = 0
    for name, members in FIELDS[service].items():
        shape = service_model(service).shape_for(name)
        listed = {each.partition("=")[0] for each in members.split()}
        for member in set(shape.members) - listed:
            [told] = unrehearsed_fields(shape, {member: "something"}, FIELDS[service])
            assert told.startswith(f"{member} {REFUSAL}: ")
            checked += 1
    assert checked > (40 if service == "sagemaker" else 3)


@pytest.mark.parametrize(
    ("operation", "request_body"),
    [
        ("CreateTrainingJob", TRAINING),
        ("CreateHyperParameterTuningJob", TUNING),
        ("CreateModel", MODEL),
        ("CreateEndpointConfig", CONFIG),
        # What clients send although it says nothing.
        ("CreateTrainingJob", TRAINING | {"InfraCheckConfig": {"EnableInfraCheck": False}, "ExperimentConfig": {}}),
    ],
)
def test_what_is_rehearsed_passes(operation: str, request_body: dict[str, Any]) -> None:
    assert refusal("sagemaker", operation, request_body) == ""


@pytest.mark.parametrize(
    ("operation", "request_body", "message"),
    [
        (
            "CreateTrainingJob",
            TRAINING | {"InfraCheckConfig": {"EnableInfraCheck": True}},
            f"InfraCheckConfig {REFUSAL}: leave it out",
        ),
        (
            "CreateTrainingJob",
            TRAINING | {"OutputDataConfig": {"S3OutputPath": "s3://bucket/out", "CompressionType": "NONE"}},
            f"OutputDataConfig.CompressionType NONE {REFUSAL}: give GZIP",
        ),
        (
            "CreateTrainingJob",
            TRAINING | {"InputDataConfig": [{**TRAINING["InputDataConfig"][0], "InputMode": "Pipe"}]},
            f"InputDataConfig[0].InputMode Pipe {REFUSAL}: give File or FastFile",
        ),
        (
            "CreateTrainingJob",
            TRAINING | {"ResourceConfig": {"InstanceGroups": [{"InstanceCount": 0}]}},
            f"ResourceConfig.InstanceGroups {REFUSAL}: give InstanceType and InstanceCount",
        ),
        ("CreateHyperParameterTuningJob", TUNING | {"Autotune": {"Mode": "Enabled"}}, f"Autotune {REFUSAL}"),
        (
            "CreateModel",
            MODEL | {"Containers": [MODEL["PrimaryContainer"]]},
            f"Containers {REFUSAL}: give one PrimaryContainer",
        ),
        (
            "UpdateEndpoint",
            {"EndpointName": "dogs", "RetainDeploymentConfig": True},
            f"RetainDeploymentConfig {REFUSAL}",
        ),
        ("Search", {"Resource": "Pipeline"}, f"Resource Pipeline {REFUSAL}"),
    ],
)
def test_a_field_or_a_value_that_would_be_ignored_is_refused(operation: str, request_body: Any, message: str) -> None:
    assert message in refusal("sagemaker", operation, request_body)


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-www-form-urlencoded", "application/x-amz-json-1.1"])
def test_headers_of_the_runtime_count_as_fields_whatever_is_posted(kind: str) -> None:
    body = {"EndpointName": "dogs", "Body": b"\xff\xd8", "ContentType": kind}
    assert refusal("sagemaker-runtime", "InvokeEndpoint", body) == ""
    assert f"TargetModel {REFUSAL}" in refusal("sagemaker-runtime", "InvokeEndpoint", body | {"TargetModel": "cats"})


def test_scaling_of_another_service_is_refused() -> None:
    table = {
        "ServiceNamespace": "dynamodb",
        "ResourceId": "table/x",
        "ScalableDimension": "dynamodb:table:ReadCapacity",
    }
    told = refusal("application-autoscaling", "RegisterScalableTarget", table)
    assert told == f"ServiceNamespace dynamodb {REFUSAL}: give sagemaker"


def test_a_call_has_its_parameters_and_leaves_the_body_readable() -> None:
    environ = written("s3", "CopyObject", {"Bucket": "mine", "Key": "a b/c", "CopySource": "yours/d"})
    assert {"Bucket": "mine", "Key": "a b/c", "CopySource": "yours/d"}.items() <= Call.of(environ).parameters.items()
    environ = written("sts", "GetCallerIdentity", {})
    assert Call.of(environ) == Call("sts", "GetCallerIdentity", "us-east-1", {})
    assert b"Action=GetCallerIdentity" in environ["wsgi.input"].read()
    environ = written("s3", "PutObject", {"Bucket": "mine", "Key": "k", "Body": b"photo", "ContentType": "image/jpeg"})
    assert Call.of(environ).parameters["ContentType"] == "image/jpeg"
    assert environ["wsgi.input"].read() == b"photo"


@pytest.mark.parametrize("service", ["sagemaker", "iam", "s3", "sagemaker-runtime"])
def test_a_page_about_an_internal_error_becomes_an_error_of_the_service(service: str) -> None:
    def failing(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response("500 INTERNAL SERVER ERROR", [("Content-Type", "text/html; charset=utf-8")])
        return [b"<!doctype html><title>500 Internal Server Error</title>"]

    operation = {"sagemaker": "ListModels", "iam": "GetRole", "s3": "GetObject"}.get(service, "InvokeEndpoint")
    error = answered(Rehearsed(failing), written(service, operation), service, operation)["Error"]
    assert error["Code"] in ("InternalFailure", "InternalError") and "internal error" in error["Message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"'])
def test_a_body_that_is_no_object_is_refused_as_aws_does(body: bytes) -> None:
    environ = written("sagemaker", "ListModels", {})
    environ["wsgi.input"].write(body)
    environ["wsgi.input"].seek(0)
    environ["CONTENT_LENGTH"] = str(len(body))
    with pytest.raises(RefusedRequestError, match="can't be read") as caught:
        Call.of(environ)
    assert caught.value.fault == "body"
