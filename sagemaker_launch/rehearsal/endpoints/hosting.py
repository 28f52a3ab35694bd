"""The operations of the service on models, endpoint configs and endpoints, for one account and region."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from moto.cloudwatch.models import cloudwatch_backends
from moto.cloudwatch.utils import make_arn_for_alarm

from sagemaker_launch.rehearsal.endpoints.autoscaling import deregister, registered
from sagemaker_launch.rehearsal.endpoints.endpoints import (
    IN_PROGRESS,
    Answer,
    Endpoint,
    Fleet,
    Request,
    Resource,
    Variant,
)
from sagemaker_launch.rehearsal.endpoints.rollout import alarm_state
from sagemaker_launch.rehearsal.endpoints.rules import (
    check_config,
    check_deployment,
    check_model,
    check_scaled,
    check_serverless_model,
    excluded_properties,
)
from sagemaker_launch.rehearsal.endpoints.runner import EndpointRunner
from sagemaker_launch.rehearsal.endpoints.serving_process import ServingProcess, ServingSpec
from sagemaker_launch.rehearsal.listing import arn, page, select
from sagemaker_launch.rehearsal.machine.runner import Machine
from sagemaker_launch.rehearsal.quotas import check_quota
from sagemaker_launch.rehearsal.roles import check_role
from sagemaker_launch.rehearsal.rules import check_image, check_rules, invalid, parse_uri

Kind = Literal["Model", "EndpointConfig"]
ARN_KINDS = {"Model": "model", "EndpointConfig": "endpoint-config", "Endpoint": "endpoint"}
WORDS = {"Model": "model", "EndpointConfig": "endpoint configuration", "Endpoint": "endpoint"}
"""Their names in AWS's messages."""

log = logging.getLogger(__name__)


class Hosting:
    """Models, endpoint configs and endpoints of one account in one region."""

    def __init__(self, region: str, machine: Machine) -> None:
        self.region, self.machine = region, machine
        self.lock = threading.RLock()
        """Held while a set of resources is read or changed."""
        self.endpoints: dict[str, Endpoint] = {}
        self._resources: dict[Kind, dict[str, Resource]] = {"Model": {}, "EndpointConfig": {}}
        self._runners: dict[str, EndpointRunner] = {}

    def create_model(self, request: Request) -> Answer:
        """CreateModel."""
        check_model(request, self.region)
        container = request["PrimaryContainer"]
        check_role(request["ExecutionRoleArn"], self.machine.settings.account, self.region)
        check_image(container["Image"], self.machine.settings.account, ("ray", "pytorch-inference"))
        if "ModelDataUrl" in container:
            self._check_object(container["ModelDataUrl"])
        namespaces = self.machine.namespaces
        if request.get("EnableNetworkIsolation") and (namespaces is None or not namespaces.root):
            log.warning("EnableNetworkIsolation is not rehearsed here: containers of endpoints keep the network")
        return self._create("Model", request)

    def create_endpoint_config(self, request: Request) -> Answer:
        """CreateEndpointConfig."""
        check_config(request, self.region)
        for variant in request["ProductionVariants"]:
            model = self._find("Model", variant["ModelName"])
            if "ServerlessConfig" in variant:
                check_serverless_model(model.request)
        self._check_buckets(request)
        return self._create("EndpointConfig", request)

    def describe_model(self, request: Request) -> Answer:
        """DescribeModel."""
        return self._find("Model", request["ModelName"]).describe()

    def describe_endpoint_config(self, request: Request) -> Answer:
        """DescribeEndpointConfig."""
        return self._find("EndpointConfig", request["EndpointConfigName"]).describe()

    def list_models(self, request: Request) -> Answer:
        """ListModels."""
        return self._list(request, self._resources["Model"], "Models")

    def list_endpoint_configs(self, request: Request) -> Answer:
        """ListEndpointConfigs."""
        return self._list(request, self._resources["EndpointConfig"], "EndpointConfigs")

    def delete_model(self, request: Request) -> Answer:
        """DeleteModel."""
        return self._delete("Model", request["ModelName"])

    def delete_endpoint_config(self, request: Request) -> Answer:
        """DeleteEndpointConfig."""
        return self._delete("EndpointConfig", request["EndpointConfigName"])

    def create_endpoint(self, request: Request) -> Answer:
        """CreateEndpoint."""
        check_rules("CreateEndpoint", request, self.region)
        name = request["EndpointName"]
        with self.lock:
            if name in self.endpoints:
                raise invalid(f'Cannot create already existing endpoint "{self.endpoints[name].arn}".')
            fleet = self._fleet(name, self._find("EndpointConfig", request["EndpointConfigName"]))
            self._check_quota(fleet.instances_by_type)
            endpoint = Endpoint(self._arn("Endpoint", name), name, list(request.get("Tags", ())), fleet)
            self.endpoints[name] = endpoint
            self._runners[name] = EndpointRunner(endpoint, self.region, self.machine, self._forget)
            self._runners[name].start()
        return {"EndpointArn": endpoint.arn}

    def describe_endpoint(self, request: Request) -> Answer:
        """DescribeEndpoint."""
        return self.endpoint(request["EndpointName"]).describe()

    def list_endpoints(self, request: Request) -> Answer:
        """ListEndpoints."""
        return self._list(request, self.endpoints, "Endpoints")

    def update_endpoint(self, request: Request) -> Answer:
        """UpdateEndpoint."""
        with self.lock:
            endpoint = self._idle(request["EndpointName"])
            new = self._find("EndpointConfig", request["EndpointConfigName"])
            # The old config must exist: AWS rolls back to it if the update fails.
            old = self._find("EndpointConfig", endpoint.config.name)
            deployment = request.get("DeploymentConfig", {})
            check_deployment(request, old.request, new.request)
            scaled = registered(self.machine.settings.account, self.region, endpoint.name)
            check_scaled(scaled, old.request, new.request)
            fleet = self._fleet(endpoint.name, new)
            self._check_alarms(deployment, fleet.variants[0].process.role)
            if request.get("RetainAllVariantProperties"):
                _retain(endpoint, fleet, excluded_properties(request))
            self._check_quota(fleet.instances_by_type)
            endpoint.green = fleet
            if deployment:
                endpoint.last_deployment = deployment
            endpoint.begin("Updating")
            self._runners[endpoint.name].update(deployment)
        return {"EndpointArn": endpoint.arn}

    def update_endpoint_weights_and_capacities(self, request: Request) -> Answer:
        """UpdateEndpointWeightsAndCapacities."""
        with self.lock:
            endpoint = self._idle(request["EndpointName"])
            assert endpoint.blue is not None
            variants = {variant.name: variant for variant in endpoint.blue.variants}
            weights, more = {name: variant.weight for name, variant in variants.items()}, Counter[str]()
            for desired in request["DesiredWeightsAndCapacities"]:
                if desired["VariantName"] not in variants:
                    raise invalid(f'Could not find variant "{desired["VariantName"]}".')
                variant = variants[desired["VariantName"]]
                weights[variant.name] = desired.get("DesiredWeight", variant.weight)
                instances = desired.get("DesiredInstanceCount", variant.instances)
                more[variant.request.get("InstanceType", "serverless")] += instances - variant.instances
            if not any(weights.values()):
                raise invalid("At least one production variant must have a weight above 0.")
            self._check_quota(more)
            endpoint.begin("Updating")
            self._runners[endpoint.name].rescale(lambda: _apply(variants, request["DesiredWeightsAndCapacities"]))
        return {"EndpointArn": endpoint.arn}

    def delete_endpoint(self, request: Request) -> Answer:
        """DeleteEndpoint."""
        with self.lock:
            endpoint = self.endpoint(request["EndpointName"])
            if endpoint.status in IN_PROGRESS:
                raise invalid(f'Cannot update in-progress endpoint "{endpoint.arn}".')
            endpoint.begin("Deleting")
            self._runners[endpoint.name].delete()
        return {}

    def endpoint(self, name: str) -> Endpoint:
        """An endpoint by name.

        Raises:
            SagemakerClientError: as AWS answers for an unknown one.
        """
        with self.lock:
            if name not in self.endpoints:
                raise invalid(f'Could not find endpoint "{self._arn("Endpoint", name)}".')
            return self.endpoints[name]

    def tagged(self) -> list[tuple[str, list[dict[str, str]]]]:
        """ARN and tags of all endpoints, configs and models."""
        with self.lock:
            found: list[Resource | Endpoint] = [*self.endpoints.values()]
            for each in self._resources.values():
                found += each.values()
            return [(one.arn, one.tags) for one in found]

    def join(self) -> None:
        """Wait until all processes have ended."""
        with self.lock:
            runners = list(self._runners.values())
        for runner in runners:
            runner.join()

    def _arn(self, kind: str, name: str) -> str:
        return arn(self.region, self.machine.settings.account, ARN_KINDS[kind], name)

    def _create(self, kind: Kind, request: Request) -> Answer:
        resource = Resource(kind, self._arn(kind, request[f"{kind}Name"]), request)
        with self.lock:
            if resource.name in self._resources[kind]:
                raise invalid(f'Cannot create already existing {WORDS[kind]} "{resource.arn}".')
            self._resources[kind][resource.name] = resource
        return {f"{kind}Arn": resource.arn}

    def _find(self, kind: Kind, name: str) -> Resource:
        with self.lock:
            if name not in self._resources[kind]:
                raise invalid(f'Could not find {WORDS[kind]} "{self._arn(kind, name)}".')
            return self._resources[kind][name]

    def _list(self, request: Request, found: dict[str, Resource] | dict[str, Endpoint], field: str) -> Answer:
        with self.lock:
            wanted = select(list(found.values()), request, order="Descending")
        return page([one.summary() for one in wanted], request, field)

    def _delete(self, kind: Kind, name: str) -> Answer:
        with self.lock:
            del self._resources[kind][self._find(kind, name).name]
        return {}

    def _idle(self, name: str) -> Endpoint:
        """An endpoint that can be updated."""
        endpoint = self.endpoint(name)
        if endpoint.status in IN_PROGRESS:
            raise invalid(f'Cannot update in-progress endpoint "{endpoint.arn}".')
        if endpoint.status == "Failed":
            raise invalid(f'Cannot update failed endpoint "{endpoint.arn}": it can only be deleted.')
        return endpoint

    def _fleet(self, endpoint: str, config: Resource) -> Fleet:
        return Fleet(config, [self._variant(endpoint, request) for request in config.request["ProductionVariants"]])

    def _variant(self, endpoint: str, request: Request) -> Variant:
        model = self._find("Model", request["ModelName"]).request
        container, name = model["PrimaryContainer"], request["VariantName"]
        folder = self.machine.settings.root / "endpoints" / self.region / endpoint / f"{name}-{time.time_ns()}"
        isolated = bool(model.get("EnableNetworkIsolation"))
        spec = ServingSpec(
            endpoint,
            name,
            self.region,
            container,
            isolated,
            model["ExecutionRoleArn"],
            serverless="ServerlessConfig" in request,
        )
        return Variant(
            request,
            container,
            ServingProcess(self.machine.short(folder), spec, self.machine),
            request.get("InitialVariantWeight", 1.0),
            request.get("InitialInstanceCount", 0),
            request.get("ServerlessConfig"),
        )

    def _forget(self, endpoint: Endpoint) -> None:
        with self.lock:
            del self.endpoints[endpoint.name], self._runners[endpoint.name]
        deregister(self.machine.settings.account, self.region, endpoint.name)

    def _check_object(self, url: str) -> None:
        uri = parse_uri(url)
        if not any(key.name == uri.key for key in self.machine.objects.below(uri)):
            raise invalid(f"Could not find model data at {url}.")

    def _check_buckets(self, request: Request) -> None:
        output = request.get("AsyncInferenceConfig", {}).get("OutputConfig", {})
        places = {
            "S3OutputPath": output.get("S3OutputPath"),
            "S3FailurePath": output.get("S3FailurePath"),
            "DestinationS3Uri": request.get("DataCaptureConfig", {}).get("DestinationS3Uri"),
        }
        for field, place in places.items():
            if place is not None and not self.machine.objects.bucket_exists(parse_uri(place).bucket):
                raise invalid(f"{field} {place}: there is no such bucket")

    def _check_alarms(self, deployment: Request, role: str) -> None:
        """Refuse alarms that do not exist, or that the endpoint's role may not read."""
        account, access = self.machine.settings.account, self.machine.objects.access
        cloudwatch = cloudwatch_backends[account][self.region]
        for alarm in deployment.get("AutoRollbackConfiguration", {}).get("Alarms", ()):
            if alarm_state(cloudwatch, alarm["AlarmName"]) is None:
                raise invalid(f"Could not find CloudWatch alarm {alarm['AlarmName']} of AutoRollbackConfiguration.")
            resource = make_arn_for_alarm(self.region, account, alarm["AlarmName"])
            denial = access.denial(role, "cloudwatch:DescribeAlarms", resource) if access else None
            if denial is not None:
                raise invalid(f"Could not read the alarms of AutoRollbackConfiguration. {denial}")

    def _check_quota(self, wanted: Counter[str]) -> None:
        """Refuse instances beyond the account's quota."""
        living = [endpoint for endpoint in self.endpoints.values() if endpoint.status != "Failed"]
        used: Counter[str] = sum(
            (fleet.instances_by_type for endpoint in living for fleet in endpoint.fleets()), start=Counter()
        )
        settings = self.machine.settings
        check_quota(settings.quotas, settings.max_endpoint_instances, used, wanted, "endpoint usage")


def _retain(endpoint: Endpoint, fleet: Fleet, excluded: set[str]) -> None:
    """Give the variants of a new fleet the present instances and weights of the old fleet."""
    assert endpoint.blue is not None
    old = {variant.name: variant for variant in endpoint.blue.variants}
    for variant in fleet.variants:
        if variant.name in old and "DesiredInstanceCount" not in excluded:
            variant.instances = old[variant.name].instances
        if variant.name in old and "DesiredWeight" not in excluded:
            variant.weight = old[variant.name].weight


def _apply(variants: dict[str, Variant], desired: Sequence[Request]) -> None:
    for each in desired:
        variant = variants[each["VariantName"]]
        variant.weight = each.get("DesiredWeight", variant.weight)
        variant.instances = each.get("DesiredInstanceCount", variant.instances)
