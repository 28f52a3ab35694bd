"""No secret is shown or stored: `redact` for a finished text, `public_url` for a URL.

A text may repeat a secret in a form that no pattern knows, such as a driver that complains about a part of a password.
So `redact` also replaces the secrets that this process knows: those of its environment, and those of the URLs that
`remember_url` was given.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

BLOT = "***"
MIN_KNOWN = 6
"""Letters of a secret that is replaced wherever it occurs; a shorter one would blot common words."""
MIN_FRAGMENT = 4
"""Letters of a part of a password. A password with `@`, `/`, `?`, `#` or `:` in it is cut there by some programs."""
DISTINCT = 12
"""Letters from which a secret is replaced within a longer word, too."""
MAX_SCAN = 1000
"""Letters of a URL in a text that are searched for its password: a limit, so that no text takes quadratic time."""

WORKING_FOLDER = "PWD"
"""A variable of every shell: no password, although other names with `pwd` at their end are."""

_SECRET_NAME = re.compile(
    r"(?:password|passwd|passphrase|secret|token|credential|signature|api[-_.]?key|(?:access|private|account)[-_.]?key"
    r"|authorization|(?:^|[-_.])(?:pass|pwd|sig|auth|jwt))\Z",
    re.IGNORECASE,
)
"""The end of a parameter's or variable's name that says that its value is a secret."""
TOKENS = {
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "AWS secret key": r"(?i)\baws_?secret_?access_?key\W{1,4}[A-Za-z0-9/+]{40}\b",
    # GitHub, GitLab, Hugging Face, npm, OpenAI, Databricks, Slack, Google
    "token": r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|npm_|sk-|dapi|xox[a-z]-|AIza)(?=[\w-]*\d)[\w-]{16,}",
    "JSON web token": r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*",
}
"""Forms of keys and tokens that tell what they are."""
_NO_SCHEME = r"\A([^:@/]+:)(?!/)"
_HEADER = r"(?i)\b((?:(?:proxy-)?authorization|x-api-key|(?:set-)?cookie):?"
_NAMED = re.compile(r"(?<![\w.%+-])(?:([\w.%+-]+)(?: ?= ?['\"]?|%3[dD])|(--[\w.-]+) (?=[^\s-]))")
"""A name before its value: name=value, or --option value."""
_TEXT_END, _URL_END = r"\s'\"`<>", ""
"""Letters that end a URL in a text; nothing but its end ends a URL alone."""
_TEXT_VALUE = re.compile(rf"[^&{_TEXT_END}]*[^&{_TEXT_END}:,.;)\]}}]")
"""In a text, the punctuation after a value is the sentence's."""
_URL_VALUE = re.compile(r"[^&#]+")


def redact(text: str) -> str:
    """A text with every secret in it replaced by `***`."""
    if not text:  # the reason of each run that did not fail
        return text
    known = _known_pattern(frozenset(_known()))
    return _blotted(known.sub(BLOT, text) if known else text, _TEXT_END)


def public_url(url: str) -> str:
    """A URL with its secrets replaced by `***`. It depends on the URL alone, so that it can be stored and compared."""
    return _blotted(url, _URL_END)


def remember_url(url: str) -> None:
    """Let `redact` replace the secrets of a URL wherever they occur, in this process and those that it starts."""
    _remembered.update(_secrets_of(url))


def remembered() -> frozenset[str]:
    """What `remember_url` has collected, for another process."""
    return frozenset(_remembered)


def remember(secrets: Iterable[str]) -> None:
    """Take over what another process has `remembered`."""
    _remembered.update(secrets)


class RedactedFormatter(logging.Formatter):
    """A format of log lines without secrets, for a log that is a file of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the traceback if there is one."""
        return redact(super().format(record))


class Revealed(str):
    """A text that is printed with its secrets, because the user asked for them."""


_remembered: set[str] = set()


def _blotted(text: str, end: str) -> str:
    for pattern, replacement in _patterns(end):
        text = pattern.sub(replacement, text)
    return _blot_values(text, _TEXT_VALUE if end else _URL_VALUE)


@functools.cache
def _patterns(end: str) -> tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]:
    """What `_blotted` replaces.

    Args:
        end: letters that end a value, for a class of a regular expression.
    """
    inside = rf"[^{end}]" if end else r"[\s\S]"
    return (
        # To the last @: a password may have raw @, /, ? and # in it.
        (re.compile(rf"(://[^:@/{end}]*:){inside}{{0,{MAX_SCAN}}}@"), rf"\1{BLOT}@"),
        # A URL whose scheme was forgotten. In a text, these letters may be anything.
        *(() if end else ((re.compile(rf"{_NO_SCHEME}[\s\S]*@"), rf"\1{BLOT}@"),)),
        # A user's name of that length is a token, as in https://TOKEN@host.
        (re.compile(rf"(://)[^:@/{end}]{{20,{MAX_SCAN}}}@"), rf"\1{BLOT}@"),
        # databricks://SCOPE:PREFIX has no host.
        (re.compile(rf"(?i)(\bdatabricks(?:\+\w+)?://[^:@/{end}]*:){inside}+"), rf"\1{BLOT}"),
        (re.compile(r"""(['"])([\w.-]+)\1(\s*[:,]\s*b?)(['"])(.*?)(?<!\\)\4"""), _entry),
        (re.compile(rf"{_HEADER} )(?:(?:basic|bearer|token) )?[^\s'\"]+"), rf"\1{BLOT}"),
        *((re.compile(form), BLOT) for form in TOKENS.values()),
    )


def _blot_values(text: str, value: re.Pattern[str]) -> str:
    """Replace the values of parameters and options with secret names.

    Args:
        value: finds a value from its beginning.
    """
    kept, start = [], 0
    for name in _NAMED.finditer(text):
        # Within a value that was replaced, no name begins. Within any other value one may: url=http://h/?token=x
        if name.start() >= start and _is_secret_name(name[1] or name[2]):
            found = value.match(text, name.end())
            if found is not None:
                kept += [text[start : name.end()], BLOT]
                start = found.end()
    return "".join([*kept, text[start:]])


def _entry(found: re.Match[str]) -> str:
    """An entry of a mapping, or a pair, as JSON or Python write it."""
    mark, name, colon, value_mark, _ = found.groups()
    return f"{mark}{name}{mark}{colon}{value_mark}{BLOT}{value_mark}" if _is_secret_name(name) else found[0]


def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(unquote(name)) is not None


def _secrets_of(url: str) -> Iterator[str]:
    """The secrets of a URL, and the parts that a program may cut a password into."""
    forms = (r"://([^:@/]*:)(.*)@", rf"{_NO_SCHEME}(.*)@", r"\A(?i:databricks).*?://(.*?:)(.*)")
    if userinfo := next(filter(None, (re.search(form, url, re.DOTALL) for form in forms)), None):
        user, password = userinfo[1].removesuffix(":"), userinfo[2]
        if len(password) >= MIN_KNOWN:
            yield password
        yield base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()  # HTTP's Authorization
        yield from (part for part in re.split("[@/?#:]", password)[1:] if len(part) >= MIN_FRAGMENT)
        yield from (part for part in re.split("[@/?#:]", password)[:1] if MIN_FRAGMENT <= len(part) < len(password))
    elif token := re.search(r"://([^:@/]{20,})@", url):
        yield token[1]
    yield from (value for name, value in re.findall(r"[?&;]([^=&?]+)=([^&#]+)", url) if _is_secret_name(name))


def _known() -> Iterator[str]:
    """The secrets of the environment and of the remembered URLs."""
    yield from tuple(_remembered)  # other threads add to it
    for name, value in os.environ.items():
        if name == WORKING_FOLDER:
            continue
        if _is_secret_name(name) and len(value) >= MIN_KNOWN:
            yield value
        elif "://" in value:
            yield from _secrets_of(value)


@functools.lru_cache(maxsize=8)
def _known_pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Finds secrets in the forms in which programs print them, the longest first."""
    plain = {form for one in secrets for form in (one, unquote(one), unquote_plus(one))}
    forms = {
        form
        for one in plain
        for form in (
            one,
            quote(one, safe=""),
            quote_plus(one),
            json.dumps(one)[1:-1],
            repr(one)[1:-1],
            html.escape(one),
        )
        if len(form) >= MIN_FRAGMENT
    }
    listed = [
        re.escape(form) if len(form) >= DISTINCT else rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
        for form in sorted(forms, key=len, reverse=True)
    ]
    return re.compile("|".join(listed)) if listed else None
