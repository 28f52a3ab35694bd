"""The error for a mistake that a user can correct."""

from lightning_modules.redaction import redact


class UserError(ValueError):
    """A setting, a file or an argument that cannot be used; the message names key, rule, value and next step.

    Its secrets are redacted: a notebook prints and keeps it without a command line around it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))
