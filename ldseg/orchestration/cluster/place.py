"""Where a program's work is done: the choice between clusters and this process, and its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import requests
from ray._private.services import find_gcs_addresses

from ldseg import ROOT
from ldseg.orchestration.cluster.launcher import (
    GCS,
    PATIENCE,
    AwayError,
    ClusterError,
    ClusterFile,
    read_cluster_file,
    tunnel,
)

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the processes that it runs as jobs
HERE = "local"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the work is done.

    Attributes:
        kind: "embedded", a Ray in this process; "node", this machine is one of the cluster's; "job", this process was
            brought to the cluster; "remote", the cluster is elsewhere and takes jobs.
        reason: why, in a few words.
        address: of the cluster: HOST:PORT for a node, a URL for a cluster that is elsewhere and not in a file.
        cluster: the file that describes it.
    """

    kind: Literal["embedded", "node", "job", "remote"]
    reason: str
    address: str = ""
    cluster: ClusterFile | None = None

    def __str__(self) -> str:
        named = f"cluster {self.cluster.name} at {self.cluster.head}" if self.cluster else f"cluster at {self.address}"
        return f"{'Ray in this process' if self.kind == 'embedded' else named} ({self.reason})"


def choose(
    given: str = "", *, described: Path | None = ROOT / "cluster.yaml", nodes: Callable[[], set[str]] | None = None
) -> Place:
    """Choose: what was asked for, then RAY_ADDRESS, then the cluster that cluster.yaml describes, if it is up.

    Args:
        given: of the command line: "local", "auto", HOST:PORT, a URL of the Jobs API, or a launcher's file.
        described: file of a cluster to use if it is up; None for none.
        nodes: tells which clusters this machine is a node of.

    Raises:
        ClusterError: what was asked for can't be used.
    """
    if os.environ.get(JOB):
        return Place(kind="job", reason="this is a job there", address=os.environ.get("RAY_ADDRESS", ""))
    nodes = nodes or (lambda: set(find_gcs_addresses()))
    for address, reason in ((given, "by --address"), (os.environ.get("RAY_ADDRESS", ""), "by RAY_ADDRESS")):
        if address:
            return _named(address, reason, nodes())
    if described is None or not described.is_file():
        return Place(kind="embedded", reason="no cluster is named")
    cluster = read_cluster_file(described)
    if not cluster.filled_in:
        return Place(kind="embedded", reason=f"{described.name} is not filled in")
    try:
        return _described(cluster, f"{described.name} describes it, it is up", nodes())
    except AwayError as error:
        return Place(kind="embedded", reason=f"{described.name} describes a cluster, but {error}")


def _described(cluster: ClusterFile, reason: str, here: set[str]) -> Place:
    cluster = cluster.located()
    own = f"{cluster.head}:{GCS}"
    if own in here:
        return Place(kind="node", reason=f"{reason}, this is a machine of it", address=own, cluster=cluster)
    with tunnel(cluster) as (url, token):
        answers(url, token)
    return Place(kind="remote", reason=reason, cluster=cluster)


def _named(address: str, reason: str, here: set[str]) -> Place:
    if address == HERE:
        return Place(kind="embedded", reason=reason)
    if address.endswith((".yaml", ".yml")):
        cluster = read_cluster_file(Path(address))
        if not cluster.filled_in:
            raise ClusterError(f"{address} names no machine yet; fill in the lines marked <<<")
        try:
            return _described(cluster, reason, here)
        except AwayError as error:
            cure = f"start the cluster with `ray up -y {address}`, or give another --address"
            raise AwayError(f"{error}; {cure}") from error
    if address.startswith(("http://", "https://")):
        answers(address, os.environ.get("RAY_AUTH_TOKEN", ""))
        return Place(kind="remote", reason=reason, address=address.rstrip("/"))
    if address == "auto" and len(here) == 1:
        return Place(kind="node", reason=reason, address=next(iter(here)))
    if address in here:
        return Place(kind="node", reason=reason, address=address)
    if address == "auto":
        what = "is a node of several clusters" if here else "is no node of a cluster"
        raise ClusterError(f"this machine {what}; give --address HOST:PORT, or the file of a cluster")
    if re.fullmatch(r"\[?[\w.:-]+\]?:\d+", address):  # Ray ends the process, and not with an exception
        raise ClusterError(
            f"this machine is no node of the cluster at {address}; give the URL of its Jobs API (http://HEAD:8265) or "
            "the file it was started from"
        )
    cure = "give HOST:PORT on a node, the URL of a Jobs API (http://HEAD:8265), a launcher's file, or local"
    raise ClusterError(f"{address} is no address that can be used here; {cure}")


def answers(url: str, token: str) -> str:
    """The version of the Ray behind a Jobs API.

    Raises:
        AwayError: nothing answers there.
        ClusterError: it does not let us in, or is no Ray.
    """
    try:
        found = requests.get(f"{url.rstrip('/')}/api/version", headers=bearer(token), timeout=PATIENCE)
    except requests.RequestException as error:
        raise AwayError(f"Ray does not answer there ({type(error).__name__})") from error
    if found.status_code in (401, 403):
        raise ClusterError(f"the cluster at {url} wants its token; set RAY_AUTH_TOKEN to what its head has in ~/.ray")
    try:
        return str(found.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"what answers at {url} is no Jobs API of Ray; correct the address") from error


def bearer(token: str) -> dict[str, str]:
    """The header that lets a request in."""
    return {"Authorization": f"Bearer {token}"} if token else {}
