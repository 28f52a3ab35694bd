r"""The codec between a RunConfig and a job's hyperparameters, which are text, and whose names may hold no dot.

`optimizer.learning_rate` is sent as `optimizer__learning_rate`: the container's start-up exports every hyperparameter
as a shell variable. Values are written as JSON, tuned ones too: SageMaker's SDK reads each value of a job that it
attaches to as JSON. They arrive in one of three forms (`false`, `False`, `"\"sgd\""`), which the typed config loader
reads alike.

AWS's toolkit 5.1.1 joins the values to one command line, which it gives to a shell. So a value has only characters
that mean nothing to a shell; a file has a fixed name in a job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from experiments.config import ConfigValue, RunConfig, is_sent, require, to_flat

TUNING_OBJECTIVE = "_tuning_objective_metric"
"""Hyperparameter that the service adds to each training job of a tuning job."""
RESERVED = ("sagemaker_", TUNING_OBJECTIVE)
"""Hyperparameters of the service and its toolkit."""


SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Text that a shell takes as one word, and no program as an option."""


def wire_name(name: str) -> str:
    """A dotted field name as a hyperparameter's name."""
    return name.replace(".", "__")


def field_name(name: str) -> str:
    """A hyperparameter's name as the dotted name of a field."""
    return name.replace("__", ".")


def wire_value(name: str, value: ConfigValue) -> str:
    """A value as text in a job's request.

    Args:
        name: of its field.

    Raises:
        UserError: for text that a shell would not take as one word.
    """
    is_safe = not isinstance(value, str) or SAFE.fullmatch(value) is not None
    require(is_safe, name, "have only letters, digits and ._- in a job", value)
    return json.dumps(value)


def encode(config: RunConfig) -> dict[str, str]:
    """The hyperparameters of a training job; text is quoted, as the toolkit warns about each unquoted one.

    Raises:
        UserError: for text that a shell would not take as one word.
    """
    return {wire_name(name): wire_value(name, value) for name, value in to_flat(config).items() if is_sent(name)}


def decode(hyperparameters: Mapping[str, str]) -> dict[str, str]:
    """Field names and values as text, for `override`, without the service's own hyperparameters."""
    return {
        field_name(name): unquoted(value) for name, value in hyperparameters.items() if not name.startswith(RESERVED)
    }


def unquoted(text: str) -> str:
    """The text without the JSON quotes that tuning jobs and the SDK put around it."""
    if not text.startswith('"'):
        return text
    try:
        loaded = json.loads(text)
    except ValueError:
        return text
    return loaded if isinstance(loaded, str) else text
