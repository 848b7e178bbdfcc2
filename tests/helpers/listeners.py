"""What a process and those below it listen on, as the kernel tells it."""

from __future__ import annotations

import ipaddress
import os
import struct
from pathlib import Path
from typing import NamedTuple

LISTENS = "0A"


class Listener(NamedTuple):
    """A port that a process listens on."""

    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    process: int

    @property
    def beyond_loopback(self) -> bool:
        """Whether others than this machine can reach it."""
        host = getattr(self.host, "ipv4_mapped", None) or self.host
        return not host.is_loopback


def listeners(processes: list[int]) -> list[Listener]:
    """All TCP ports that these processes listen on."""
    sockets = {inode: process for process in processes for inode in _sockets(process)}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and words[9] in sockets:
                host, _, port = words[1].partition(":")
                found.append(Listener(_address(host), int(port, 16), sockets[words[9]]))
    return found


def _sockets(process: int) -> list[str]:
    found = []
    try:
        names = os.listdir(f"/proc/{process}/fd")
    except OSError:  # it has ended
        return []
    for name in names:
        try:
            target = os.readlink(f"/proc/{process}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found.append(target[len("socket:[") : -1])
    return found


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Of words of 32 bits, each in the machine's own order of bytes."""
    words = [int(host[k : k + 8], 16) for k in range(0, len(host), 8)]
    return ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words))
