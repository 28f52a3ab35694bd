"""Which resources belong to the project, and their tags: AWS's index of tags answers for 100 resources per call."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sagemaker_launch.aws.resources import ResourceType, tags_of
from sagemaker_launch.settings.cloud import PROJECT_TAG, CloudSettings

TAGGING = "resourcegroupstaggingapi"
"""The service that has the index, as boto3 calls it."""
INDEX_DELAY = timedelta(minutes=1)
"""Age from which the index has a resource: it is eventually consistent (GetResources, API reference, read 2026-11)."""
PAGE = 100
"""Resources of one answer, the most that AWS allows."""


class ProjectTags:
    """The tags of the project's resources of some types."""

    def __init__(self, sagemaker: Any, tagging: Any, settings: CloudSettings, *resource_types: ResourceType) -> None:
        self._sagemaker, self._project = sagemaker, settings.project
        pages = tagging.get_paginator("get_resources").paginate(
            TagFilters=[{"Key": PROJECT_TAG, "Values": [settings.project]}],
            ResourceTypeFilters=[f"sagemaker:{resource_type.kind}" for resource_type in resource_types],
            ResourcesPerPage=PAGE,
        )
        self.by_arn: dict[str, Mapping[str, str]] = {
            found["ResourceARN"]: {tag["Key"]: tag["Value"] for tag in found["Tags"]}
            for page in pages
            for found in page["ResourceTagMappingList"]
        }

    def of(self, arn: str, created: datetime) -> Mapping[str, str] | None:
        """The tags of a resource that was listed; None if it belongs to somebody else."""
        tags = self.by_arn.get(arn)
        if tags is None and datetime.now(UTC) - created < INDEX_DELAY:
            tags = tags_of(self._sagemaker, arn, created)
        return tags if tags is not None and tags.get(PROJECT_TAG) == self._project else None

    def tags(self, *resource_types: ResourceType) -> list[Mapping[str, str]]:
        """The tags of the project's resources of some types, without the youngest."""
        kinds = tuple(f":{resource_type.kind}/" for resource_type in resource_types)
        return [tags for arn, tags in self.by_arn.items() if any(kind in arn for kind in kinds)]

    def names(self, resource_type: ResourceType) -> set[str]:
        """Names of the project's resources of a type, without the youngest."""
        return {arn.rpartition("/")[2] for arn in self.by_arn if f":{resource_type.kind}/" in arn}
