"""What the launcher, a job and the rehearsal must agree on about a job's machine and folders."""

from __future__ import annotations

import re

REHEARSED_WITHOUT_GPU = "rehearsed_without_gpu"
"""Entry of resourceconfig.json by which the rehearsal lets a job of a GPU instance train on the CPU. The service writes
that file, so no request can set it."""


def has_gpu(instance_type: str) -> bool:
    """Whether an instance type has NVIDIA GPUs, of which it may have several."""
    return re.match(r"(ml\.)?[gp]\d", instance_type) is not None


def run_folder_name(job_name: str) -> str:
    """The run folder of a job below its checkpoints: its name without the number of the attempt.

    So an attempt finds what the one before it has left. Jobs of a tuning job and of other programs have their whole
    name.
    """
    match = re.fullmatch(r"(.*-[0-9a-f]{10})-\d+", job_name)
    return match[1] if match else job_name
