"""AWS's index of tags (Resource Groups Tagging API), over the jobs and endpoints of the rehearsal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from moto.core.responses import ActionResult
from moto.resourcegroupstaggingapi.exceptions import ResourceGroupsTaggingAPIError
from moto.resourcegroupstaggingapi.responses import ResourceGroupsTaggingAPIResponse

from sagemaker_launch.rehearsal import moto_urls
from sagemaker_launch.rehearsal.api import Regions

MAX_PAGE = 100
"""Resources of one answer, and the default (GetResources, API reference, read 2026-11)."""


class TagIndexResponse(ResourceGroupsTaggingAPIResponse):
    """Answers GetResources for SageMaker's resources, all of which are in the index at once."""

    regions: ClassVar[Regions]

    def get_resources(self) -> ActionResult:
        """GetResources."""
        size = self._get_int_param("ResourcesPerPage", MAX_PAGE)
        if not 1 <= size <= MAX_PAGE:
            raise ResourceGroupsTaggingAPIError(
                "InvalidParameterException", f"ResourcesPerPage must be between 1 and {MAX_PAGE}"
            )
        types, wanted = self._get_param("ResourceTypeFilters", []), self._get_param("TagFilters", [])
        found = [
            {"ResourceARN": arn, "Tags": tags}
            for arn, tags in self.regions[self.region].tagged()
            if _is_of(arn, types) and _has(tags, wanted)
        ]
        start = int(self._get_param("PaginationToken") or 0)
        token = str(start + size) if start + size < len(found) else ""
        return ActionResult({"ResourceTagMappingList": found[start : start + size], "PaginationToken": token})


def _is_of(arn: str, types: list[str]) -> bool:
    """Whether an ARN is of one of the types, such as `sagemaker:endpoint` or `sagemaker`."""
    _, _, service, _, _, resource = arn.split(":", 5)
    return not types or service in types or f"{service}:{resource.partition('/')[0]}" in types


def _has(tags: list[dict[str, str]], wanted: list[Mapping[str, Any]]) -> bool:
    """Whether tags pass all filters: each has a key, and values of which one must match."""
    held = {tag["Key"]: tag["Value"] for tag in tags}
    return all(one["Key"] in held and (not one.get("Values") or held[one["Key"]] in one["Values"]) for one in wanted)


def install_tag_index(regions: Regions) -> None:
    """Replace moto's answers, in this process."""
    TagIndexResponse.regions = regions
    moto_urls.answer("resourcegroupstaggingapi", TagIndexResponse.dispatch)
