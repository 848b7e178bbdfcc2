"""Where the workers of a training meet is on the loopback where their Ray is, and not on every interface."""

from __future__ import annotations

import importlib
import socket
from dataclasses import dataclass
from typing import Any

from ray._common.network_utils import is_localhost
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


@dataclass
class LocalTorchConfig(TorchConfig):
    """As Ray Train's, but for where the first worker listens on a Ray that is on the loopback."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train starts the workers' process group by."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(listen_on_loopback)
        super().on_start(worker_group, backend_config)


def listen_on_loopback() -> None:
    """In a worker, before its process group begins: PyTorch has no setting for it, but takes a socket that listens."""
    # torch.distributed has a function of the module's name
    module: Any = importlib.import_module("torch.distributed.rendezvous")
    made = module.TCPStore

    def store(*, host_name: str, port: int, is_master: bool, **options: Any) -> Any:
        if is_master and is_localhost(host_name):
            family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
            options["master_listen_fd"] = socket.create_server((host_name, port), family=family).detach()
        return made(host_name=host_name, port=port, is_master=is_master, **options)

    module.TCPStore = store
