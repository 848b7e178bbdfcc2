"""A program that is to run elsewhere: its options, what of them goes along, and the job that it becomes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldseg import ROOT
from ldseg.data.remote import is_url
from ldseg.orchestration.cluster.launcher import ClusterError

if TYPE_CHECKING:
    from ldseg.orchestration.cluster.place import Place

SHARED = ("--data", "--runs")  # options whose value is a path on the cluster
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
    from ldseg.orchestration.cluster.place import choose  # with Ray, for which --help does not wait

    place = choose(options.address)
    if place.kind == "remote":
        from ldseg.orchestration.cluster import jobs

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
        address = ", or an address (s3://...)" if option == "--data" else ""
        raise ClusterError(
            f"{option} {value} is relative; on a cluster give the whole path, on a file system its machines share"
            + address
        )
    return value


def print_place(program: str, place: Place) -> None:
    """Tell where the work is done; a job's first line was told by who brought it."""
    if place.kind != "job":
        print(f"{program}: {place}", file=sys.stdout, flush=True)
