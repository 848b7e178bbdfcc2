"""A replica's own port is on the loopback where its Ray is.

Each replica opens a port for calls of other deployments by gRPC, on every interface, whatever address its node has.
Serve has no setting for it, so its function is replaced. On a cluster the port is as Serve has it; there as here
who has no token of Ray's is refused.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._common.network_utils import build_address, is_localhost
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica


def in_replica() -> None:
    """In the process of the application, before Serve opens the port."""
    node = ray.util.get_node_ip_address()
    if is_localhost(node):
        replica.add_port_to_grpc_server = lambda server, _: _listen(server, node)


def _listen(server: Any, node: str) -> int:
    return int(add_port_to_grpc_server(server, build_address(node, 0)))
