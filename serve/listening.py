"""A replica's own port listens where Ray listens.

Each replica opens a port for calls of other deployments by gRPC, on every interface, whatever address its node has.
Serve has no setting for it, so its function is replaced by one that takes the node's address: on a Ray of one's own
the loopback, on a cluster what the other nodes know this one by. Who has no token is refused there in both.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._common.network_utils import build_address
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica


def in_replica() -> None:
    """In the process of the application, before Serve opens the port."""
    replica.add_port_to_grpc_server = _on_own_address


def _on_own_address(server: Any, _: str) -> int:
    return int(add_port_to_grpc_server(server, build_address(ray.util.get_node_ip_address(), 0)))
