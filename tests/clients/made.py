"""What our launcher has made and reported, for the scripts of clients.

Scripts run in the environment of their client, so this module needs the standard library only.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

MADE: dict[str, Any] = json.loads(Path(os.environ["LAUNCHED"]).read_text())
TUNING_JOB, TRAINING_JOB, BEST = MADE["tuning_job"], MADE["training_job"], MADE["best"]


def close(found: float, reported: float) -> bool:
    """Whether they agree to what float32 keeps, in which AWS keeps metrics."""
    return math.isclose(found, reported, rel_tol=1e-5, abs_tol=1e-6)
