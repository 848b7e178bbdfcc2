"""The Ray that programs run on: a cluster by RAY_ADDRESS, else one started in this process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ldseg.orchestration import home  # noqa: F401  sets the environment before ray is imported

import ray  # isort: skip

ROOT = Path(__file__).resolve().parents[2]


def connect(
    *,
    num_cpus: int | None = None,
    resources: dict[str, float] | None = None,
    object_store_mb: int = 300,
    dashboard: bool = True,
) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local Ray that ends with this process.

    Args:
        num_cpus: logical CPUs of a local Ray; None takes the machine's.
        resources: custom resources of a local Ray.
        object_store_mb: size of a local Ray's object store.
        dashboard: of a local Ray; without it Ray Train can't clean up after trials that are stopped.
    """
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(
            runtime_env={"working_dir": str(ROOT), "excludes": ["runs", ".venv", ".git"]}, logging_level=logging.ERROR
        )
        return
    ray.init(
        address="local",
        num_cpus=num_cpus,
        resources=resources,
        object_store_memory=object_store_mb * 2**20,
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={
            "env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            "worker_process_setup_hook": "ldseg.orchestration.address.know_address",
        },
    )
    for name in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def alive() -> bool:
    """Whether the processes of a Ray that was started here are all there; one of a cluster is not this program's."""
    node = ray._private.worker._global_node
    return node is None or node.remaining_processes_alive()


def shutdown() -> None:
    """Leave the cluster; a local Ray ends."""
    if ray.is_initialized():
        ray.shutdown()
