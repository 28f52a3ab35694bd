"""Who may ask a server that is for this machine only: its programs, and the pages of the server itself.

A port on 127.0.0.1 is out of reach for other machines, but not for the web pages that a browser on this machine shows.
A page can send requests to any address, with its own address in the Origin header. A page whose host name was made to
resolve to 127.0.0.1 (DNS rebinding) counts as a page of the server, but its Host header has that name.

A proxy, such as SageMaker Studio's, passes on requests under a name of its own, which a person may allow.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Whether a Host header, with any port, names this machine. A tunnel or proxy has a port of its own."""
    name = _name(host)
    if name is None:
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        # No name server is asked for these; source: RFC 6761, section 6.3.
        return name == "localhost" or name.endswith(".localhost")


def _name(host: str) -> str | None:
    """The name or address in a Host header, in lower case; None if it has another form."""
    found = _HOST.fullmatch(host.lower())
    return (found[1] or found[2]) if found else None


def why_foreign(host: str, origin: str | None, allowed: Collection[str] = ()) -> str | None:
    """Why a request is refused; None for a request of a program on this machine or of a page of the server.

    Args:
        host: the Host header.
        origin: the Origin header; None if there is none, as in requests of programs.
        allowed: names of hosts, in lower case, under which a proxy passes on requests to this machine.
    """
    if not is_loopback(host) and _name(host) not in allowed:
        return "the Host header must name this machine, such as 127.0.0.1 or localhost"
    if origin is None or origin.lower() == f"http://{host.lower()}":
        return None
    # A proxy may replace the Host header by this machine's, and leave the Origin header.
    if _name(origin.removeprefix("https://").removeprefix("http://")) not in allowed:
        return "the Origin header must be missing or name this server: pages of others may not ask it"
    return None
