"""What is rehearsed: an allow-list of operations, and of the fields of those that would otherwise be ignored.

Everything else is refused in the words and in the error form of its service. moto would store a field without acting on
it, and would tell of a processing job, a pipeline or a transform job that it is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from botocore.model import Shape
from moto.core.utils import get_service_model

from sagemaker_launch.rehearsal.calls import CALL, Call
from sagemaker_launch.rehearsal.faults import Application
from sagemaker_launch.rehearsal.gate import answer_refused
from sagemaker_launch.rehearsal.iam import PARTITIONS
from sagemaker_launch.rehearsal.signatures import Environ, RefusedRequestError

log = logging.getLogger(__name__)

OPERATIONS: Mapping[str, frozenset[str]] = {
    service: frozenset(names.split())
    for service, names in {
        "application-autoscaling": """
            DeleteScalingPolicy DeregisterScalableTarget DescribeScalableTargets DescribeScalingPolicies
            PutScalingPolicy RegisterScalableTarget""",
        "cloudwatch": """
            DeleteAlarms DescribeAlarms DescribeAlarmsForMetric GetMetricData GetMetricStatistics ListMetrics
            ListTagsForResource PutMetricAlarm PutMetricData SetAlarmState TagResource UntagResource""",
        "iam": """
            AttachRolePolicy AttachUserPolicy CreatePolicy CreatePolicyVersion CreateRole DeletePolicy
            DeletePolicyVersion DeleteRole DeleteRolePolicy DeleteUserPolicy DetachRolePolicy DetachUserPolicy GetPolicy
            GetPolicyVersion GetRole GetRolePolicy GetUser GetUserPolicy ListAttachedRolePolicies
            ListAttachedUserPolicies ListPolicyVersions ListRolePolicies ListRoleTags ListRoles ListUserPolicies
            ListUsers PutRolePolicy PutUserPolicy SetDefaultPolicyVersion SimulatePrincipalPolicy TagRole UntagRole
            UpdateAssumeRolePolicy""",
        "logs": """
            CreateLogGroup CreateLogStream DeleteLogGroup DeleteLogStream DescribeLogGroups DescribeLogStreams
            FilterLogEvents GetLogEvents ListTagsForResource PutLogEvents TagResource UntagResource""",
        "resourcegroupstaggingapi": "GetResources",
        "s3": """
            AbortMultipartUpload CompleteMultipartUpload CopyObject CreateBucket CreateMultipartUpload DeleteBucket
            DeleteBucketEncryption DeleteBucketTagging DeleteObject DeleteObjectTagging DeleteObjects
            DeletePublicAccessBlock GetBucketEncryption GetBucketLocation GetBucketTagging GetBucketVersioning GetObject
            GetObjectAttributes GetObjectTagging GetPublicAccessBlock HeadBucket HeadObject ListBuckets
            ListMultipartUploads ListObjectVersions ListObjects ListObjectsV2 ListParts PutBucketEncryption
            PutBucketTagging PutBucketVersioning PutObject PutObjectTagging PutPublicAccessBlock UploadPart
            UploadPartCopy""",
        "sagemaker": """
            AddTags CreateEndpoint CreateEndpointConfig CreateHyperParameterTuningJob CreateModel CreateTrainingJob
            DeleteEndpoint DeleteEndpointConfig DeleteModel DeleteTags DescribeEndpoint DescribeEndpointConfig
            DescribeHyperParameterTuningJob DescribeModel DescribeTrainingJob ListEndpointConfigs ListEndpoints
            ListHyperParameterTuningJobs ListModels ListTags ListTrainingJobs ListTrainingJobsForHyperParameterTuningJob
            Search StopHyperParameterTuningJob StopTrainingJob UpdateEndpoint UpdateEndpointWeightsAndCapacities""",
        "sagemaker-runtime": "InvokeEndpoint InvokeEndpointAsync",
        "scheduler": """
            CreateSchedule CreateScheduleGroup DeleteSchedule DeleteScheduleGroup GetSchedule GetScheduleGroup
            ListScheduleGroups ListSchedules ListTagsForResource TagResource UntagResource UpdateSchedule""",
        "sts": "GetCallerIdentity",
    }.items()
}
"""Operations by service. Of STS there is nothing that hands out keys: no request would pass with them."""

DELETE_ENDPOINT = "|".join(f"arn:{partition}:scheduler:::aws-sdk:sagemaker:deleteEndpoint" for partition in PARTITIONS)
"""The target of a schedule, by partition."""
FIELDS: Mapping[str, Mapping[str, str]] = {
    "sagemaker": {
        # training and tuning jobs
        "CreateTrainingJobRequest": """
            TrainingJobName HyperParameters AlgorithmSpecification RoleArn InputDataConfig OutputDataConfig
            ResourceConfig VpcConfig StoppingCondition Tags EnableNetworkIsolation EnableInterContainerTrafficEncryption
            EnableManagedSpotTraining CheckpointConfig DebugHookConfig DebugRuleConfigurations ProfilerConfig
            ProfilerRuleConfigurations Environment RetryStrategy""",
        "AlgorithmSpecification": """
            TrainingImage TrainingInputMode=File|FastFile MetricDefinitions EnableSageMakerMetricsTimeSeries
            ContainerEntrypoint ContainerArguments""",
        "MetricDefinition": "Name Regex",
        "Channel": """
            ChannelName DataSource ContentType CompressionType=None RecordWrapperType=None InputMode=File|FastFile""",
        "DataSource": "S3DataSource",
        "S3DataSource": "S3DataType=S3Prefix|ManifestFile S3Uri S3DataDistributionType",
        "OutputDataConfig": "KmsKeyId S3OutputPath CompressionType=GZIP",
        "ResourceConfig": "InstanceType InstanceCount VolumeSizeInGB VolumeKmsKeyId KeepAlivePeriodInSeconds",
        "VpcConfig": "SecurityGroupIds Subnets",
        "StoppingCondition": "MaxRuntimeInSeconds MaxWaitTimeInSeconds MaxPendingTimeInSeconds",
        "Tag": "Key Value",
        "CheckpointConfig": "S3Uri LocalPath",
        "DebugHookConfig": "LocalPath S3OutputPath HookParameters CollectionConfigurations",
        "CollectionConfiguration": "CollectionName CollectionParameters",
        "DebugRuleConfiguration": """
            RuleConfigurationName LocalPath S3OutputPath RuleEvaluatorImage InstanceType VolumeSizeInGB
            RuleParameters""",
        "ProfilerConfig": "S3OutputPath ProfilingIntervalInMilliseconds ProfilingParameters DisableProfiler",
        "ProfilerRuleConfiguration": """
            RuleConfigurationName LocalPath S3OutputPath RuleEvaluatorImage InstanceType VolumeSizeInGB
            RuleParameters""",
        "RetryStrategy": "MaximumRetryAttempts",
        "CreateHyperParameterTuningJobRequest": """
            HyperParameterTuningJobName HyperParameterTuningJobConfig TrainingJobDefinition WarmStartConfig Tags""",
        "HyperParameterTuningJobConfig": """
            Strategy StrategyConfig HyperParameterTuningJobObjective ResourceLimits ParameterRanges
            TrainingJobEarlyStoppingType TuningJobCompletionCriteria RandomSeed""",
        "HyperParameterTuningJobStrategyConfig": "HyperbandStrategyConfig",
        "HyperbandStrategyConfig": "MinResource MaxResource",
        "HyperParameterTuningJobObjective": "Type MetricName",
        "ResourceLimits": "MaxNumberOfTrainingJobs MaxParallelTrainingJobs MaxRuntimeInSeconds",
        "ParameterRanges": "IntegerParameterRanges ContinuousParameterRanges CategoricalParameterRanges",
        "IntegerParameterRange": "Name MinValue MaxValue ScalingType",
        "ContinuousParameterRange": "Name MinValue MaxValue ScalingType",
        "CategoricalParameterRange": "Name Values",
        "TuningJobCompletionCriteria": "TargetObjectiveMetricValue BestObjectiveNotImproving",
        "BestObjectiveNotImproving": "MaxNumberOfTrainingJobsNotImproving",
        "HyperParameterTrainingJobDefinition": """
            DefinitionName StaticHyperParameters AlgorithmSpecification RoleArn InputDataConfig VpcConfig
            OutputDataConfig ResourceConfig HyperParameterTuningResourceConfig StoppingCondition EnableNetworkIsolation
            EnableInterContainerTrafficEncryption EnableManagedSpotTraining CheckpointConfig RetryStrategy
            Environment""",
        "HyperParameterTuningResourceConfig": """
            InstanceType InstanceCount VolumeSizeInGB VolumeKmsKeyId AllocationStrategy InstanceConfigs""",
        "HyperParameterTuningInstanceConfig": "InstanceType InstanceCount VolumeSizeInGB",
        "HyperParameterAlgorithmSpecification": "TrainingImage TrainingInputMode=File|FastFile MetricDefinitions",
        "HyperParameterTuningJobWarmStartConfig": "ParentHyperParameterTuningJobs WarmStartType",
        "ParentHyperParameterTuningJob": "HyperParameterTuningJobName",
        # models and endpoints
        "CreateModelInput": "ModelName PrimaryContainer ExecutionRoleArn Tags VpcConfig EnableNetworkIsolation",
        "ContainerDefinition": "ContainerHostname Image Mode=SingleModel ModelDataUrl Environment",
        "CreateEndpointConfigInput": """
            EndpointConfigName ProductionVariants DataCaptureConfig Tags KmsKeyId AsyncInferenceConfig""",
        "ProductionVariant": """
            VariantName ModelName InitialInstanceCount InstanceType InitialVariantWeight ServerlessConfig VolumeSizeInGB
            ModelDataDownloadTimeoutInSeconds ContainerStartupHealthCheckTimeoutInSeconds RoutingConfig
            InferenceAmiVersion""",
        "ProductionVariantServerlessConfig": "MemorySizeInMB MaxConcurrency ProvisionedConcurrency",
        "ProductionVariantRoutingConfig": "RoutingStrategy=RANDOM|LEAST_OUTSTANDING_REQUESTS",
        "DataCaptureConfig": """
            EnableCapture InitialSamplingPercentage DestinationS3Uri KmsKeyId CaptureOptions
            CaptureContentTypeHeader""",
        "CaptureOption": "CaptureMode=Input|Output",
        "CaptureContentTypeHeader": "CsvContentTypes JsonContentTypes",
        "AsyncInferenceConfig": "ClientConfig OutputConfig",
        "AsyncInferenceClientConfig": "MaxConcurrentInvocationsPerInstance",
        "AsyncInferenceOutputConfig": "KmsKeyId S3OutputPath S3FailurePath",
        "CreateEndpointInput": "EndpointName EndpointConfigName Tags",
        "UpdateEndpointInput": """
            EndpointName EndpointConfigName RetainAllVariantProperties ExcludeRetainedVariantProperties
            DeploymentConfig""",
        "VariantProperty": "VariantPropertyType",
        "DeploymentConfig": "BlueGreenUpdatePolicy AutoRollbackConfiguration",
        "BlueGreenUpdatePolicy": """
            TrafficRoutingConfiguration TerminationWaitInSeconds MaximumExecutionTimeoutInSeconds""",
        "TrafficRoutingConfig": "Type WaitIntervalInSeconds CanarySize LinearStepSize",
        "CapacitySize": "Type Value",
        "AutoRollbackConfig": "Alarms",
        "Alarm": "AlarmName",
        "UpdateEndpointWeightsAndCapacitiesInput": "EndpointName DesiredWeightsAndCapacities",
        "DesiredWeightAndCapacity": "VariantName DesiredWeight DesiredInstanceCount",
        # lists
        "ListTrainingJobsRequest": """
            NextToken MaxResults CreationTimeAfter CreationTimeBefore LastModifiedTimeAfter LastModifiedTimeBefore
            NameContains StatusEquals SortBy SortOrder WarmPoolStatusEquals""",
        "ListHyperParameterTuningJobsRequest": """
            NextToken MaxResults CreationTimeAfter CreationTimeBefore LastModifiedTimeAfter LastModifiedTimeBefore
            NameContains StatusEquals SortBy SortOrder""",
        "ListTrainingJobsForHyperParameterTuningJobRequest": """
            HyperParameterTuningJobName NextToken MaxResults StatusEquals SortBy SortOrder""",
        "ListModelsInput": "NextToken MaxResults CreationTimeAfter CreationTimeBefore NameContains SortBy SortOrder",
        "ListEndpointConfigsInput": """
            NextToken MaxResults CreationTimeAfter CreationTimeBefore NameContains SortBy SortOrder""",
        "ListEndpointsInput": """
            NextToken MaxResults CreationTimeAfter CreationTimeBefore LastModifiedTimeAfter LastModifiedTimeBefore
            NameContains StatusEquals SortBy SortOrder""",
        "SearchRequest": """
            Resource=TrainingJob|HyperParameterTuningJob|Endpoint SearchExpression SortBy SortOrder NextToken
            MaxResults""",
        "SearchExpression": "Filters NestedFilters SubExpressions Operator",
        "Filter": "Name Operator Value",
        "NestedFilters": "NestedPropertyName Filters",
        # by name or ARN
        "AddTagsInput": "ResourceArn Tags",
        "ListTagsInput": "ResourceArn NextToken MaxResults",
        "DeleteTagsInput": "ResourceArn TagKeys",
        "DescribeTrainingJobRequest": "TrainingJobName",
        "DescribeHyperParameterTuningJobRequest": "HyperParameterTuningJobName",
        "DescribeModelInput": "ModelName",
        "DescribeEndpointConfigInput": "EndpointConfigName",
        "DescribeEndpointInput": "EndpointName",
        "DeleteModelInput": "ModelName",
        "DeleteEndpointConfigInput": "EndpointConfigName",
        "DeleteEndpointInput": "EndpointName",
        "StopTrainingJobRequest": "TrainingJobName",
        "StopHyperParameterTuningJobRequest": "HyperParameterTuningJobName",
    },
    "sagemaker-runtime": {
        "InvokeEndpointInput": """
            EndpointName Body ContentType Accept CustomAttributes TargetVariant InferenceId""",
        "InvokeEndpointAsyncInput": """
            EndpointName Body ContentType Accept CustomAttributes InferenceId InputLocation RequestTTLSeconds
            InvocationTimeoutSeconds""",
    },
    "application-autoscaling": {
        "RegisterScalableTargetRequest": """
            ServiceNamespace=sagemaker ResourceId ScalableDimension=sagemaker:variant:DesiredInstanceCount MinCapacity
            MaxCapacity RoleARN Tags""",
        "DeregisterScalableTargetRequest": """
            ServiceNamespace=sagemaker ResourceId ScalableDimension=sagemaker:variant:DesiredInstanceCount""",
        "DescribeScalableTargetsRequest": """
            ServiceNamespace=sagemaker ResourceIds ScalableDimension=sagemaker:variant:DesiredInstanceCount MaxResults
            NextToken""",
        "PutScalingPolicyRequest": """
            PolicyName ServiceNamespace=sagemaker ResourceId ScalableDimension=sagemaker:variant:DesiredInstanceCount
            PolicyType=TargetTrackingScaling|StepScaling StepScalingPolicyConfiguration
            TargetTrackingScalingPolicyConfiguration""",
        "StepScalingPolicyConfiguration": """
            AdjustmentType StepAdjustments MinAdjustmentMagnitude Cooldown MetricAggregationType""",
        "StepAdjustment": "MetricIntervalLowerBound MetricIntervalUpperBound ScalingAdjustment",
        "TargetTrackingScalingPolicyConfiguration": """
            TargetValue PredefinedMetricSpecification CustomizedMetricSpecification ScaleOutCooldown ScaleInCooldown
            DisableScaleIn""",
        "PredefinedMetricSpecification": "PredefinedMetricType",
        "CustomizedMetricSpecification": "MetricName Namespace Dimensions Statistic Unit",
        "MetricDimension": "Name Value",
        "DeleteScalingPolicyRequest": """
            PolicyName ServiceNamespace=sagemaker ResourceId
            ScalableDimension=sagemaker:variant:DesiredInstanceCount""",
        "DescribeScalingPoliciesRequest": """
            PolicyNames ServiceNamespace=sagemaker ResourceId ScalableDimension=sagemaker:variant:DesiredInstanceCount
            MaxResults NextToken""",
    },
    "resourcegroupstaggingapi": {
        "GetResourcesInput": "PaginationToken TagFilters ResourcesPerPage ResourceTypeFilters",
        "TagFilter": "Key Values",
    },
    "scheduler": {
        "CreateScheduleInput": """
            Name GroupName ScheduleExpression Description ScheduleExpressionTimezone State Target FlexibleTimeWindow
            ClientToken ActionAfterCompletion""",
        "UpdateScheduleInput": """
            Name GroupName ScheduleExpression Description ScheduleExpressionTimezone State Target FlexibleTimeWindow
            ClientToken ActionAfterCompletion""",
        "Target": f"Arn={DELETE_ENDPOINT} RoleArn Input",
        "FlexibleTimeWindow": "Mode=OFF",
        "DeleteScheduleInput": "Name GroupName ClientToken",
        "GetScheduleInput": "Name GroupName",
        "ListSchedulesInput": "GroupName NamePrefix State NextToken MaxResults",
        "CreateScheduleGroupInput": "Name Tags ClientToken",
        "DeleteScheduleGroupInput": "Name ClientToken",
        "GetScheduleGroupInput": "Name",
        "ListScheduleGroupsInput": "NamePrefix NextToken MaxResults",
        "ListTagsForResourceInput": "ResourceArn",
        "TagResourceInput": "ResourceArn Tags",
        "UntagResourceInput": "ResourceArn TagKeys",
        "Tag": "Key Value",
    },
}
"""Members of structures that are acted on, or recorded and described where there is nothing to act on, by botocore's
name of the structure; with the values that are, where not all are. A member that is not listed is refused."""
INSTEAD: Mapping[str, str] = {
    "Containers": "give one PrimaryContainer",
    "ModelDataSource": "give ModelDataUrl",
    "RollingUpdatePolicy": "give a BlueGreenUpdatePolicy",
    "TrainingJobDefinitions": "give one TrainingJobDefinition",
    "AlgorithmName": "give TrainingImage",
    "InstanceGroups": "give InstanceType and InstanceCount",
}
"""What to send in place of a member that is not rehearsed."""


class Rehearsed:
    """In front of all services: it names the call for the applications behind it, and refuses what is not rehearsed."""

    def __init__(self, application: Application) -> None:
        self._application = application

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Pass a request on with its call, or refuse it."""
        try:
            call = environ[CALL] = Call.of(environ)
            check_rehearsed(call)
        except RefusedRequestError as refused:
            return answer_refused(environ, start_response, refused)
        return self._without_pages(environ, start_response)

    def _without_pages(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Answer an internal error in the form of the service: moto and Flask write a page, which no client reads."""
        call: Call = environ[CALL]
        failed = RefusedRequestError("internal", "We encountered an internal error. Please try again. (see server.log)")
        pages: list[str] = []

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if status.startswith("5") and dict(headers).get("Content-Type", "").startswith("text/html"):
                pages.append(status)
                return lambda _: None
            return start_response(status, headers, *rest)

        try:
            answer = self._application(environ, start)
        except ConnectionError:  # a rehearsed one: the client gets no answer
            raise
        except Exception:
            log.exception("%s:%s", call.service, call.operation)
            return answer_refused(environ, start_response, failed)
        if not pages:
            return answer
        log.error("%s:%s: %s", call.service, call.operation, b"".join(answer).decode(errors="replace"))
        return answer_refused(environ, start_response, failed)


def check_rehearsed(call: Call) -> None:
    """Refuse an operation, a field or a value that is not on the list.

    Raises:
        RefusedRequestError: naming the first that is not.
    """
    if call.operation not in OPERATIONS[call.service]:
        raise RefusedRequestError("unsupported", f"{call.service}:{call.operation} works on AWS, but is not rehearsed")
    shape = get_service_model(call.service).operation_model(call.operation).input_shape
    if call.service in FIELDS and shape is not None:
        for problem in unrehearsed_fields(shape, call.parameters, FIELDS[call.service]):
            raise RefusedRequestError("unsupported", problem)


def unrehearsed_fields(shape: Shape, value: Any, known: Mapping[str, str], path: str = "") -> Iterator[str]:
    """Each member that was given and is not rehearsed, with what to do.

    Args:
        known: members by structure, as in FIELDS.
    """
    if shape.type_name == "list" and isinstance(value, list):
        for number, item in enumerate(value):
            yield from unrehearsed_fields(shape.member, item, known, f"{path}[{number}]")
    elif shape.type_name == "structure" and isinstance(value, Mapping):
        allowed = {name: values for name, _, values in (each.partition("=") for each in known[shape.name].split())}
        for name, item in value.items():
            place = f"{path}.{name}" if path else name
            # What is not in the model is refused with the rest of its rules.
            if name not in shape.members or not _is_given(item):
                continue
            if name not in allowed:
                instead = INSTEAD.get(name, "leave it out")
                yield f"{place} works on AWS, but is not rehearsed: {instead}"
            elif allowed[name] and item not in allowed[name].split("|"):
                values = " or ".join(allowed[name].split("|"))
                yield f"{place} {item} works on AWS, but is not rehearsed: give {values}"
            else:
                yield from unrehearsed_fields(shape.members[name], item, known, place)


def _is_given(value: Any) -> bool:
    """Whether a value means something else than an absent one: clients send `false` and empty structures, too."""
    if isinstance(value, Mapping):
        return any(map(_is_given, value.values()))
    return value is not None and value is not False and value not in ("", [])
