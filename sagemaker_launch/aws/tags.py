"""Any text as the value of a tag: AWS allows letters, digits, spaces and `_.:/=+-@`."""

from __future__ import annotations

import re

MAX_VALUE = 256
"""Characters of a tag's value (AWS's tagging reference, read 2026-11)."""


def to_tag_value(text: str) -> str:
    """Write what a tag may not hold as `=XX`, the hexadecimal bytes of its UTF-8, as quoted-printable does."""
    return re.sub(r"[^\w .:/+@-]", lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), text)


def from_tag_value(value: str) -> str:
    """The text of `to_tag_value`."""
    return re.sub(r"(?:=[0-9A-F]{2})+", lambda found: bytes.fromhex(found[0].replace("=", "")).decode(), value)
