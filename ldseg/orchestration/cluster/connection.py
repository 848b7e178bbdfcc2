"""The Ray that programs run on: a cluster, else one started in this process."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import ray
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from ldseg import ROOT
from ldseg.orchestration.cluster.launcher import ClusterError, first_line
from ldseg.orchestration.cluster.local import secluded
from ldseg.orchestration.cluster.place import Place, choose

HOOK = "ldseg.orchestration.cluster.connection.know_address"
HEAD = "node:__internal_head__"  # a resource of every cluster's head
_own = ExitStack()  # what keeps a local Ray to itself


def connect(
    place: Place | None = None,
    *,
    num_cpus: int | None = None,
    resources: dict[str, float] | None = None,
    object_store_mb: int = 300,
    dashboard: bool = True,
) -> None:
    """Join a cluster, or start a local Ray that ends with this process, and that nobody else can reach.

    Args:
        place: what `choose` found; None for the cluster of RAY_ADDRESS, else a local Ray.
        num_cpus: logical CPUs of a local Ray; None takes the machine's.
        resources: custom resources of a local Ray.
        object_store_mb: size of a local Ray's object store.
        dashboard: of a local Ray; without it Ray Train can't clean up after trials that are stopped.

    Raises:
        ClusterError: a local Ray does not start, or a cluster does not let us in.
    """
    if ray.is_initialized():
        return
    place = place or choose(described=None)
    if place.kind == "remote":
        raise ClusterError(f"this program can't be brought to the {place}; start it on one of its machines")
    if place.kind == "embedded":
        _start(num_cpus, resources, object_store_mb, dashboard)
    else:
        _join(place)
    for name in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _join(place: Place) -> None:
    # a job was brought with its tree
    brought = {} if place.kind == "job" else {"working_dir": str(ROOT), "excludes": ["/runs", "/.venv", "/.git"]}
    try:
        ray.init(
            address=place.address or "auto",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={**brought, "worker_process_setup_hook": HOOK},
        )
    except (ConnectionError, AuthenticationError) as error:
        raise ClusterError(
            f"the {place} does not let this program in ({first_line(error)}); if it asks for a token, set "
            "RAY_AUTH_MODE=token and put the token into ~/.ray/auth_token (mode 600)"
        ) from error


def _start(num_cpus: int | None, resources: dict[str, float] | None, object_store_mb: int, dashboard: bool) -> None:
    shutdown()
    atexit.register(shutdown)
    folder = _own.enter_context(secluded())
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            resources=resources,
            object_store_memory=object_store_mb * 2**20,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            runtime_env={
                "env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                "worker_process_setup_hook": HOOK,
            },
        )
    except Exception as error:  # Ray has no class of its own for this
        shutdown()
        raise ClusterError(
            f"Ray did not start on this machine ({first_line(error)}); if it is busy or short of memory, try again "
            "when it is not"
        ) from error


def alive() -> bool:
    """Whether the processes of a Ray that was started here are all there; one of a cluster is not this program's."""
    node = ray._private.worker._global_node
    return node is None or node.remaining_processes_alive()


@contextmanager
def watched(program: str, cure: str) -> Iterator[None]:
    """End this process with one sentence and exit status 2 where a Ray that was started here dies under it.

    Ray itself would try to reach its dead parts for a minute and then abort the process with a stack of C++.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            node = ray._private.worker._global_node
            parts = {} if node is None else node.all_processes
            for kind in (ray_constants.PROCESS_TYPE_GCS_SERVER, ray_constants.PROCESS_TYPE_RAYLET):
                if any(part.process.poll() is not None for part in parts.get(kind, [])) and not ended.is_set():
                    line = f"{program}: Ray died under this program (its {kind} was killed or crashed); {cure}"
                    print(line, file=sys.stderr, flush=True)
                    with suppress(Exception):  # what else of it is left; nothing is left to do if that fails
                        node.kill_all_processes(check_alive=False, allow_graceful=False)
                    os._exit(2)

    thread = threading.Thread(target=watch, daemon=True, name="ray-watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def slot(name: str) -> dict[str, float]:
    """A logical resource for what steers a trial and does no work: of a local Ray its own, else one of the head.

    On a cluster it keeps such processes on the head, so that a machine that is lost costs its workers only.
    """
    return {name: 1} if name in ray.cluster_resources() else {HEAD: 0.001}


def shutdown() -> None:
    """Leave the cluster; a local Ray ends."""
    ray.shutdown()
    _own.close()


def know_address() -> None:
    """Tell this process which Ray is its own.

    Ray Train asks Ray's state interface whether the driver of a training is still alive, and frees its CPUs if it is
    not; with a second Ray on the machine and no address it finds "multiple active Ray instances" and gives up, and the
    CPUs of every trial that is stopped early stay taken until no trial can start.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
