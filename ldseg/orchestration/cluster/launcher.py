"""The cluster that cluster.yaml describes, as seen from a machine outside it: its head by SSH."""

from __future__ import annotations

import ipaddress
import os
import shlex
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_FILLED_IN = ipaddress.ip_network("192.0.2.0/24")  # addresses for documentation, which no machine has (RFC 5737)
DASHBOARD, GCS = 8265, 6379
PATIENCE = 8  # seconds for a head to answer


class ClusterError(ValueError):
    """A cluster can't be used; one sentence says why and what helps."""


class AwayError(ClusterError):
    """A cluster's head does not answer."""


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """What a launcher's file says of a cluster's head.

    Attributes:
        head: its address; "" if the provider has to be asked.
        container: name of the container that Ray runs in, "" for none.
    """

    path: Path
    name: str
    head: str
    user: str
    key: str
    proxy: str = ""
    container: str = ""

    @property
    def filled_in(self) -> bool:
        """Whether it names a machine: the file that comes with the project doesn't."""
        try:
            return ipaddress.ip_address(self.head) not in NOT_FILLED_IN
        except ValueError:
            return True

    def located(self) -> ClusterFile:
        """The same with its head's address, which a cloud is asked for.

        Raises:
            AwayError: the cloud knows of no head.
        """
        if self.head:
            return self
        from ray.autoscaler.sdk import get_head_node_ip

        try:
            return ClusterFile(**{**vars(self), "head": get_head_node_ip(str(self.path))})
        except (Exception, SystemExit) as error:  # each provider raises its own, and the launcher exits
            first = (str(error).splitlines() or ["no word"])[0]
            raise AwayError(f"the provider of {self.path.name} names no head ({first})") from error


def read_cluster_file(path: Path) -> ClusterFile:
    """Read a launcher's file.

    Raises:
        ClusterError: it is none.
    """
    import yaml  # of the extras, which the options of a program need not

    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        provider, auth = content["provider"], content.get("auth") or {}
        head = str(provider["head_ip"]) if provider["type"] == "local" else ""
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        why = first_line(error)
        raise ClusterError(f"{path} describes no cluster of Ray's launcher ({why}); correct it") from error
    return ClusterFile(
        path=path,
        name=str(content.get("cluster_name", "")),
        head=str(provider.get("external_head_ip", head)),
        user=str(auth.get("ssh_user", "")),
        key=str(auth.get("ssh_private_key", "")),
        proxy=str(auth.get("ssh_proxy_command") or ""),
        container=str((content.get("docker") or {}).get("container_name", "")),
    )


def first_line(error: BaseException) -> str:
    """An error in a few words."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def tunnel(cluster: ClusterFile) -> Iterator[tuple[str, str]]:
    """Reach a cluster's Jobs API, which listens on its head's loopback only.

    Yields:
        The API's address here and the cluster's token.

    Raises:
        AwayError: the head doesn't answer, or doesn't let us in, or no cluster was started there.
    """
    port = _free_port()
    with tempfile.TemporaryFile("w+") as errors, subprocess.Popen(
        _ssh(cluster, port), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        start_new_session=True,  # Ctrl-C is for us, and the question that follows needs the tunnel
    ) as process:  # fmt: skip
        late = threading.Timer(2 * PATIENCE, process.kill)  # it may hang after the connection was made
        late.start()
        try:
            token = process.stdout.readline().strip() if process.stdout else ""
            late.cancel()
            if not token:
                errors.seek(0)
                words = [line for line in errors.read().splitlines() if line and "Warning" not in line]
                raise AwayError(f"its head {cluster.head} does not answer by SSH ({words[-1] if words else 'no word'})")
            if token == "-":
                raise AwayError(f"no cluster was started on its head {cluster.head}")
            yield f"http://127.0.0.1:{port}", token
        finally:
            late.cancel()
            process.kill()


def _ssh(cluster: ClusterFile, port: int) -> list[str]:
    """One connection for both: the token is its first line, the tunnel lives until its input is closed."""
    say = "cat ~/.ray/auth_token 2>/dev/null || printf -; echo"
    if cluster.container:
        say = f"docker exec {shlex.quote(cluster.container)} bash -c {shlex.quote(say)} || echo -"
    options = {
        "BatchMode": "yes", "StrictHostKeyChecking": "accept-new", "ExitOnForwardFailure": "yes",
        "ConnectTimeout": str(PATIENCE), "ServerAliveInterval": "5", "ServerAliveCountMax": "3",
    }  # fmt: skip
    if cluster.proxy:
        options["ProxyCommand"] = cluster.proxy
    return [
        "ssh", *[f"-o{name}={value}" for name, value in options.items()],
        *(["-i", os.path.expanduser(cluster.key), "-oIdentitiesOnly=yes"] if cluster.key else []),
        "-L", f"127.0.0.1:{port}:127.0.0.1:{DASHBOARD}",
        f"{cluster.user}@{cluster.head}" if cluster.user else cluster.head,
        f"{say}; exec cat >/dev/null",
    ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
