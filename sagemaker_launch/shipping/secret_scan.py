"""What looks like a secret must not leave this machine: detect-secrets looks for it in what is about to be packed."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.errors import UserError
from lightning_modules.redaction import TOKENS

NOT_USED = ("HexHighEntropyString", "IPPublicDetector")
"""Detectors of detect-secrets that take hashes of files and addresses for secrets."""
ALLOWED = "# pragma: allowlist secret"
"""Comment by which detect-secrets passes a line over."""


def refuse_secrets(files: Mapping[str, bytes]) -> None:
    """Refuse files with what looks like a secret.

    Args:
        files: path in the archive to content.

    Raises:
        UserError: naming the file, the line and the type of secret, never the secret.
    """
    found = next(_found(files), None)
    if found is not None:
        name, line, secret_type = found
        raise UserError(
            f"{name}, line {line}, holds what looks like a secret ({secret_type}): nothing was packed; take it out, or "
            f"end the line with `{ALLOWED}` if it is none"
        )


def _found(files: Mapping[str, bytes]) -> Iterator[tuple[str, int, str]]:
    """File, line and type of each probable secret."""
    shown_by = warnings.showwarning
    # Takes a tenth of a second, which only packing needs. The first import redirects this process's warnings to a log.
    from detect_secrets.settings import default_settings, get_plugins

    if warnings.showwarning is not shown_by:
        logging.captureWarnings(False)
    with default_settings() as settings:
        settings.disable_plugins(*NOT_USED)
        detectors = get_plugins()
        for name, content in files.items():
            text = content.decode(errors="replace")
            # A detector takes a file for one long line a quarter as fast as the filters take the lines of it.
            if any(detector.analyze_line(filename=name, line=text) for detector in detectors):
                yield from ((name, line, secret_type) for line, secret_type in _scanned(name, text))
            yield from ((name, line, secret_type) for line, secret_type in _tokens(text))


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    """Line and type of keys and tokens in forms that detect-secrets 1.5.0 lacks or wants in a context."""
    for secret_type, form in TOKENS.items():
        for match in re.finditer(form, text):
            before, line = text[: match.start()].count("\n"), text.splitlines()
            if ALLOWED not in line[before]:
                yield before + 1, secret_type


def _scanned(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Line and kind of what detect-secrets finds, without what its filters know to be none."""
    from detect_secrets.core.scan import scan_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name  # a detector looks at the name's suffix
        path.write_text(text, encoding="utf-8")  # it passes a file in another encoding over
        yield from ((found.line_number, found.type) for found in scan_file(str(path)))
