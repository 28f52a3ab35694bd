"""What exists in the account, asked by boto3 alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import boto3

REGION = "us-east-1"
STOPPED = ("Stopping", "Stopped")


class Account:
    """Reads an account past the commands under test."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        session = boto3.Session(
            environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"], region_name=REGION
        )
        url = environment["AWS_ENDPOINT_URL"]
        self.sagemaker, self.cloudwatch, self.scheduler, self.scaling, self.s3 = (
            session.client(name, endpoint_url=url)
            for name in ("sagemaker", "cloudwatch", "scheduler", "application-autoscaling", "s3")
        )

    def resources(self) -> dict[tuple[str, str], str]:
        """The state of each resource, by its type and name. Jobs of a tuning job are left out: they end with it."""
        found: dict[tuple[str, str], str] = {}
        for kind, operation, key in (
            ("tuning job", "list_hyper_parameter_tuning_jobs", "HyperParameterTuningJob"),
            ("training job", "list_training_jobs", "TrainingJob"),
            ("endpoint", "list_endpoints", "Endpoint"),
            ("config", "list_endpoint_configs", "EndpointConfig"),
            ("model", "list_models", "Model"),
        ):
            for summary in self._listed(self.sagemaker, operation, MaxResults=100):
                found[kind, summary[f"{key}Name"]] = summary.get(f"{key}Status", "")
        of_tuning_jobs = tuple(f"{name}-" for kind, name in found if kind == "tuning job")
        for kind, name in list(found):
            if kind == "training job" and name.startswith(of_tuning_jobs):
                del found[kind, name]
        for kind, name in found:
            if kind == "endpoint" and found[kind, name] == "InService":
                found[kind, name] += f" {self.sagemaker.describe_endpoint(EndpointName=name)['EndpointConfigName']}"
        for alarm in self._listed(self.cloudwatch, "describe_alarms"):
            if not alarm["AlarmName"].startswith("TargetTracking-"):  # they belong to scaling
                found["alarm", alarm["AlarmName"]] = ""
        for schedule in self._listed(self.scheduler, "list_schedules"):
            found["schedule", schedule["Name"]] = ""
        for target in self._listed(self.scaling, "describe_scalable_targets", ServiceNamespace="sagemaker"):
            found["scaling", target["ResourceId"].split("/")[1]] = ""
        return found

    def empty(self, bucket: str, prefix: str) -> None:
        """Delete the objects below a prefix, so that a command uploads them again."""
        listed = self._listed(self.s3, "list_objects_v2", Bucket=bucket, Prefix=prefix)
        keys = [{"Key": entry["Key"]} for entry in listed]
        if keys:
            self.s3.delete_objects(Bucket=bucket, Delete={"Objects": keys})

    def delete(self, resource: str, name: str) -> None:
        """Delete an endpoint, so that the next case has the quota, or a config or a model."""
        if resource == "endpoint":
            self.sagemaker.delete_endpoint(EndpointName=name)
        elif resource == "config":
            self.sagemaker.delete_endpoint_config(EndpointConfigName=name)
        else:
            self.sagemaker.delete_model(ModelName=name)

    def _listed(self, client: Any, operation: str, **only: Any) -> list[dict[str, Any]]:
        pages = list(client.get_paginator(operation).paginate(**only))
        return [entry for page in pages for entry in _entries(page)]


def _entries(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = [value for name, value in page.items() if isinstance(value, list) and name != "CompositeAlarms"]
    return lists[0] if lists else []
