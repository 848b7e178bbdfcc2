"""A cluster on hosts made of namespaces, the terminal of a laptop beside it, and what can be seen of both."""

from __future__ import annotations

import json
import os
import pty
import re
import sys
import threading
import time

from cluster.diary import Diary
from cluster.hosts import ROOT, Hosts

NODES = ("head", "worker1", "worker2")
COMMON = f"""
export LDSEG_VENV={sys.prefix} RAY_memory_monitor_refresh_ms=0 RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION=0.02
export RAY_OVERRIDE_RESOURCES='{{"CPU": 1}}'
"""
LAPTOP = f"export PATH={sys.prefix}/bin:$PATH PYTHONPATH={ROOT} RAY_USAGE_STATS_ENABLED=0\n"


def filled_in(text: str, hosts: Hosts) -> str:
    """cluster.yaml with its marked lines filled in, and nothing else."""
    address = {name: hosts[name].address for name in NODES}
    for pattern, value in (
        (r"(head_ip: )\S+", address["head"]),
        (r"(worker_ips: )\[.*?\]", f"[{address['worker1']}, {address['worker2']}]"),
        (r"(ssh_user: )\S+", "root"),
        (r"(ssh_private_key: )\S+", str(hosts.key)),
        (r"(node.sh setup )\S+", f"{hosts.shared}/runs"),
    ):
        text, found = re.subn(pattern, rf"\g<1>{value}", text)
        assert found == 1, pattern
    return text


class Terminal:
    """A command on the laptop with a terminal of its own, whose screen can be read while it runs."""

    def __init__(self, hosts: Hosts, *command: str) -> None:
        self.laptop, self.screen = hosts["laptop"], ""
        self.name = command[1]
        master, slave = pty.openpty()
        self.master = master
        self.process = self.laptop.start(*command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.master, 65536)
            except OSError:
                return
            self.screen += piece.decode(errors="replace").replace("\r", "")

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """What Ctrl-C sends."""
        self.laptop.run("pkill", "-INT", "-f", f"python {self.name}")


class Cluster:
    """The hosts, the diary and the command that are the same in all steps."""

    def __init__(self, hosts: Hosts, diary: Diary) -> None:
        self.hosts, self.diary = hosts, diary
        self.runs = hosts.shared / "runs"

    def alive(self) -> set[str]:
        """Addresses of the machines that the head takes for a part of the cluster."""
        asked = 'curl -s -H "Authorization: Bearer $(cat ~/.ray/auth_token)" http://127.0.0.1:8265/api/v0/nodes'
        try:
            answer = json.loads(self.hosts["head"].run("bash", "-c", asked, check=False))
        except ValueError:
            return set()
        found = answer["data"]["result"]["result"]
        return {node["node_ip"] for node in found if node["state"] == "ALIVE"}

    def epochs(self, trial: int, study: str = "phantom2d") -> list[int]:
        """The epochs that a trial has trained, in order, those that were trained again too."""
        path = self.runs / "train" / f"{study}-{trial:04d}" / "history.jsonl"
        return [int(json.loads(line)["epoch"]) for line in path.read_text().splitlines()] if path.exists() else []

    def all_epochs(self, trials: int = 3) -> list[int]:
        """How many epochs each trial has trained."""
        return [len(self.epochs(trial)) for trial in range(trials)]

    def raylets(self, name: str) -> int:
        """How many Rays run on a machine."""
        return len(self.hosts[name].run("pgrep", "-x", "raylet", check=False).split())

    def trainers(self) -> list[str]:
        """The machines that train, one entry for each process that does."""
        lists = {name: self.hosts[name].run("pgrep", "-f", "^ray::TrialTrainer", check=False) for name in NODES}
        return [name for name, found in lists.items() for _ in found.split()]

    def up(self) -> str:
        """`ray up`, and wait until all machines are there; what it said."""
        start = time.monotonic()
        said = self.hosts["laptop"].run("ray", "up", "-y", "cluster.yaml", cwd=ROOT)
        self.diary.say(f"`ray up -y cluster.yaml` ended well ({time.monotonic() - start:.1f} s)")
        self.diary.wait("all three machines are in the cluster", lambda: len(self.alive()) == 3, 300)
        return said
