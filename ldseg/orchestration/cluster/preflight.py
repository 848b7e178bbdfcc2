"""Do all machines of a cluster see the same files and have the same packages? Asked before the first training."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ldseg import ROOT
from ldseg.data.remote import is_url, unreadable_reason
from ldseg.orchestration.cluster import packages
from ldseg.orchestration.cluster.launcher import ClusterError
from ldseg.orchestration.cluster.place import Place

PATIENCE = 120.0  # seconds for every machine to answer; the first process on one unpacks the working tree


@dataclass(frozen=True)
class Sight:
    """What one machine found.

    Attributes:
        no_data: why the data can't be read; "" if they can.
        sees_home: whether the path is there, with the content that the driver put there.
        refused: why nothing can be written to the home; "" if it can.
        different: packages that are not those of constraints.txt.
    """

    no_data: str
    sees_home: bool
    refused: str
    different: tuple[str, ...]


def look(data: str, home: str, mark: str) -> dict[str, Any]:
    """What this machine sees.

    Args:
        mark: name and content of a file that the driver has put into the home; an answer is put beside it.
    """
    place, refused = Path(home), ""
    seen = (place / mark).is_file() and (place / mark).read_text() == mark
    if seen:
        answer = place / f"{mark}-{ray.get_runtime_context().get_node_id()}"
        try:
            answer.write_text(mark)
        except OSError as error:
            refused = error.strerror or str(error)
    no_data = unreadable_reason(data) if is_url(data) else "" if os.path.exists(data) else "is not there"
    different = packages.differences(ROOT / "constraints.txt")
    return {"no_data": no_data, "sees_home": seen, "refused": refused, "different": tuple(different)}


def check(place: Place, data: str, home: Path) -> list[str]:
    """Ask every machine of the cluster; nothing to ask where Ray runs in this process.

    Returns:
        What is to be said without being an obstacle: machines that did not answer.

    Raises:
        ClusterError: a machine doesn't see the data or the home of all runs, or has other packages.
    """
    if place.kind == "embedded":
        return []
    if home.is_relative_to(ROOT) and place.kind == "job":
        raise ClusterError(
            "there is no place for what is made: --runs DIR, on a file system that all machines share (or its path "
            "behind `setup` in cluster.yaml)"
        )
    mark = f".ldseg-{uuid.uuid4().hex}"
    (home / mark).write_text(mark)
    try:
        sights, silent = _ask(data, home, mark)
        unseen = [address for address, node in sights.items() if not (home / f"{mark}-{node[0]}").exists()]
    finally:
        for left in home.glob(f"{mark}*"):
            left.unlink(missing_ok=True)
    _judge({address: node[1] for address, node in sights.items()}, unseen, data, home)
    return [f"{', '.join(silent)} did not answer and was not asked what it sees"] if silent else []


def _ask(data: str, home: Path, mark: str) -> tuple[dict[str, tuple[str, Sight]], list[str]]:
    """What each machine sees by its address, and the addresses of those that did not answer."""
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    remote = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            data, str(home), mark
        ): node
        for node in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
    found, silent = {}, [nodes[asked[answer]] for answer in late]
    for answer in ready:
        node = asked[answer]
        try:
            found[nodes[node]] = (node, Sight(**ray.get(answer)))
        except ray.exceptions.RayError:
            silent.append(nodes[node])
    for answer in late:
        ray.cancel(answer)
    return found, sorted(silent)


def _judge(sights: dict[str, Sight], unseen: list[str], data: str, home: Path) -> None:
    """Raise for the first thing that would make trainings fail."""

    def those(wrong: list[str]) -> str:
        return ", ".join(sorted(wrong))

    cure = "put it on a file system that all machines of the cluster share, mounted everywhere under the same path"
    if wrong := [a for a, sight in sights.items() if sight.no_data]:
        if is_url(data):
            reason = sights[wrong[0]].no_data
            raise ClusterError(f"{data} can't be read on {those(wrong)} ({reason}); allow it there")
        raise ClusterError(f"{data} is not there on {those(wrong)}; {cure}")
    if wrong := [a for a, sight in sights.items() if not sight.sees_home or (a in unseen and not sight.refused)]:
        raise ClusterError(f"{home} on {those(wrong)} is another folder than here; {cure}")
    if wrong := [a for a, sight in sights.items() if sight.refused]:
        raise ClusterError(f"nothing can be written to {home} on {those(wrong)} ({sights[wrong[0]].refused}); allow it")
    if wrong := [a for a, sight in sights.items() if sight.different]:
        words = packages.in_words(list(sights[wrong[0]].different))
        raise ClusterError(f"{those(wrong)} has other packages than this tree ({words}); `ray up` again installs them")
