"""The Ray that programs run on: a cluster, else one started in this process."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ldseg.data.remote import is_url
from ldseg.orchestration import home  # noqa: F401  sets the environment before ray is imported

import ray  # isort: skip

from ldseg.orchestration.clusterfile import ClusterError, first_line
from ldseg.orchestration.places import ROOT, Place, choose

HOOK = "ldseg.orchestration.address.know_address"
HEAD = "node:__internal_head__"  # a resource of every cluster's head
SHARED = ("--data", "--runs", "--storage", "--out")  # options whose value is a path on the cluster
ONLY_HERE = ("--address", "--attach", "--detach")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a program that can run on a cluster."""
    add = parser.add_argument
    add(
        "--address",
        default="",
        metavar="WHERE",
        help="of a cluster: a launcher's file, the URL of its Jobs API, on one of its machines auto or HOST:PORT; "
        "local for none (default: RAY_ADDRESS, else the cluster of cluster.yaml if it is up, else none)",
    )
    add("--attach", nargs="?", const="", metavar="JOB", help="follow a job on the cluster again (default: the newest)")
    add("--detach", action="store_true", help="on a cluster: don't wait for the end")


def elsewhere(
    program: str, name: str, options: argparse.Namespace, arguments: Sequence[str], *, shipped: Sequence[str] = ()
) -> tuple[Place, int | None]:
    """Choose the place; if it is a cluster elsewhere, run the program there.

    Args:
        name: of what is worked on, the study or the run.
        arguments: of the command line.
        shipped: options whose value is a file of this machine, which has to lie in the project's folder.

    Returns:
        The place, and the exit status of the job; None if the work is to be done in this process.

    Raises:
        ClusterError: what was asked for can't be used.
    """
    place = choose(options.address)
    if place.kind == "remote":
        from ldseg.orchestration import jobs

        print(f"{program}: {place}", flush=True)
        work = jobs.Work(program=program, name=name, arguments=tuple(for_cluster(arguments, shipped)))
        return place, jobs.run(place, work, attach=options.attach, detach=options.detach)
    if options.attach is not None or options.detach:
        raise ClusterError(f"--attach and --detach are for a cluster elsewhere, and this is {place}")
    return place, None


def for_cluster(arguments: Sequence[str], shipped: Sequence[str]) -> list[str]:
    """The same arguments as they mean the same in a copy of the project's folder on another machine.

    Raises:
        ClusterError: a file can't come along, or a path of the cluster is relative.
    """
    found, pending = [], list(arguments)
    while pending:
        option, equals, value = pending.pop(0).partition("=")
        if option in ONLY_HERE:
            if not equals and option != "--detach" and pending and not pending[0].startswith("--"):
                pending.pop(0)
            continue
        found.append(option + equals + value)
        known = option in shipped or option in SHARED
        if known and (equals or pending):
            path = value if equals else pending.pop(0)
            moved = _shipped(option, path) if option in shipped else _shared(option, path)
            found[-1:] = [f"{option}={moved}"] if equals else [option, moved]
    return found


def _shipped(option: str, value: str) -> str:
    path = Path(value)
    if not path.exists():
        return value  # a name and not a file; or a mistake, which is told there
    try:
        return str(path.resolve().relative_to(ROOT))
    except ValueError as error:
        raise ClusterError(f"{option} {value} lies outside {ROOT}, which goes to the cluster; move it there") from error


def _shared(option: str, value: str) -> str:
    if not is_url(value) and not Path(value).is_absolute():
        raise ClusterError(
            f"{option} {value} is relative; on a cluster give the whole path, on a file system its machines share, "
            "or an address (s3://...)"
        )
    return value


def connect(
    place: Place | None = None,
    *,
    num_cpus: int | None = None,
    resources: dict[str, float] | None = None,
    object_store_mb: int = 300,
    dashboard: bool = True,
) -> None:
    """Join a cluster, or start a local Ray that ends with this process.

    Args:
        place: what `choose` found; None for the cluster of RAY_ADDRESS, else a local Ray.
        num_cpus: logical CPUs of a local Ray; None takes the machine's.
        resources: custom resources of a local Ray.
        object_store_mb: size of a local Ray's object store.
        dashboard: of a local Ray; without it Ray Train can't clean up after trials that are stopped.

    Raises:
        ClusterError: a local Ray does not start.
    """
    if ray.is_initialized():
        return
    place = place or choose(described=None)
    if place.kind == "remote":
        raise ClusterError(f"this program can't be brought to the {place}; start it on one of its machines")
    if place.kind == "embedded":
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
                runtime_env={
                    "env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                    "worker_process_setup_hook": HOOK,
                },
            )
        except Exception as error:  # Ray has no class of its own for this
            ray.shutdown()
            raise ClusterError(
                f"Ray did not start on this machine ({first_line(error)}); if it is busy or short of memory, try again "
                "when it is not"
            ) from error
    else:
        # a job was brought with its tree
        brought = {} if place.kind == "job" else {"working_dir": str(ROOT), "excludes": ["runs", ".venv", ".git"]}
        ray.init(
            address=place.address or "auto",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={**brought, "worker_process_setup_hook": HOOK},
        )
    for name in ("ray.train", "ray.tune", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def alive() -> bool:
    """Whether the processes of a Ray that was started here are all there; one of a cluster is not this program's."""
    node = ray._private.worker._global_node
    return node is None or node.remaining_processes_alive()


def slot(name: str) -> dict[str, float]:
    """A logical resource for what steers a trial and does no work: of a local Ray its own, else one of the head.

    On a cluster it keeps such processes on the head, so that a machine that is lost costs its workers only.
    """
    return {name: 1} if name in ray.cluster_resources() else {HEAD: 0.001}


def say_place(program: str, place: Place) -> None:
    """Tell where the work is done; a job's first line was told by who brought it."""
    if place.kind != "job":
        print(f"{program}: {place}", file=sys.stdout, flush=True)


def shutdown() -> None:
    """Leave the cluster; a local Ray ends."""
    if ray.is_initialized():
        ray.shutdown()
