"""The error for a mistake that a user can correct."""


class UserError(ValueError):
    """A setting, a file or an argument that cannot be used; the message names key, rule, value and next step."""
