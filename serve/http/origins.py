"""By which names the service is known, and which pages may ask it: any page of the web can have a browser send."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from serve.http.problems import Problem

OWN_SITE = ("none", "same-origin")  # of Sec-Fetch-Site: typed in by the user, or asked for by the service's own page
READING = ("GET", "HEAD")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a name or an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(headers: Headers, allowed: Sequence[str]) -> None:
    """Refuse names that are not the service's: a name of the web may be made to lead here (DNS rebinding).

    Args:
        allowed: beside the names of this machine's loopback.

    Raises:
        Problem: the name is unknown, or there is none.
    """
    for host in headers.getlist("Host") or [""]:
        name = _name(f"//{host}")
        if not (is_loopback(name) or name in allowed):
            cure = "start it with --allow-host NAME (the setting allow_hosts) if that is its name"
            raise Problem("unknown-host", f"the service is not known as {host[:100]!r}; {cure}")


def check_origin(headers: Headers, allowed: Sequence[str]) -> None:
    """Refuse what a page of another site, or of another port of this machine, has a browser send.

    Raises:
        Problem: the request comes from such a page.
    """
    origin, host = headers.get("Origin"), headers.get("Host", "")
    own = origin is None or origin.partition("://")[2] == host.lower() or _name(origin) in allowed
    if not own or headers.get("Sec-Fetch-Site", "none") not in OWN_SITE:
        raise Problem("cross-site", "open the service's own page; those of other sites may not use it")


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
