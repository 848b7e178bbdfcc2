"""Several hosts on one machine, for tests that need root: each has its own network, processes, mounts and SSH server.

A host is one process with namespaces of its own, and so is the switch between them, a bridge. When these processes end
(they die with the one that made them) nothing is left, no interface and no mount; files lie in one temporary folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[3]
UNSHARE = ["unshare", "--net", "--uts", "--ipc", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
TOOLS = ("ip", "unshare", "nsenter", "mount", "rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")
SSHD = """
Port 22
HostKey {key}
AuthorizedKeysFile {authorized}
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
AllowTcpForwarding yes
MaxStartups 100
"""


def why_not() -> str:
    """Why hosts can't be made here; empty if they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "hosts as network namespaces need root"
    if missing:
        return f"{', '.join(missing)} is missing (apt-get install iproute2 openssh-server rsync)"
    if any(path.is_relative_to("/tmp") for path in (ROOT, Path(sys.prefix))):
        return "each host has a /tmp of its own, so the project and its Python can't lie there"
    folder = "/mnt"
    tried = subprocess.run(
        [*UNSHARE, "sh", "-c", f"mount -t tmpfs none {folder} && ip link add b0 type bridge && cd {folder} && "
         "mkdir a b c d && mount -t overlay overlay -o lowerdir=a,upperdir=b,workdir=c d"],
        capture_output=True, text=True,
    )  # fmt: skip
    return "" if tried.returncode == 0 else f"this machine makes no namespaces, bridges or overlays ({tried.stderr})"


class Host:
    """A machine of the test.

    Attributes:
        pid: of its first process, as seen from here.
    """

    def __init__(self, name: str, address: str, process: subprocess.Popen[bytes], pid: int) -> None:
        self.name, self.address, self.process, self.pid = name, address, process, pid

    def command(self, *command: str, cwd: Path | str = "/") -> list[str]:
        """A command line that runs on this host in a login shell's environment."""
        # nsenter's own --wd is a folder of the caller's mounts
        begin = f'. ~/.bashrc; cd {shlex.quote(str(cwd))} && exec "$0" "$@"'
        inside = ["env", "-i", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8", "bash", "-lc", begin]
        space = ["--net", "--uts", "--ipc", "--pid", "--mount"]
        return ["nsenter", "--target", str(self.pid), *space, "--wd=/", "--", *inside, *command]

    def run(self, *command: str, cwd: Path | str = "/", timeout: float = 300, check: bool = True) -> str:
        """Run it to its end; what it printed, errors included."""
        done = subprocess.run(
            self.command(*command, cwd=cwd), timeout=timeout, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} on {self.name} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def start(self, *command: str, cwd: Path | str = "/", **options: object) -> subprocess.Popen[str]:
        """Start it in a session of its own."""
        return subprocess.Popen(self.command(*command, cwd=cwd), text=True, start_new_session=True, **options)  # type: ignore[call-overload]


class Hosts:
    """The hosts and the switch between them.

    Args:
        names: the first has no SSH server and doesn't see the shared folder: it is somebody's laptop.
        bashrc: what each login shell of a host begins with, by the host's name.
    """

    def __init__(self, *names: str, bashrc: dict[str, str], net: str = "10.99.0") -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ldseg-hosts-", dir="/var/tmp"))
        self.shared = self.base / "shared"
        self.shared.mkdir()
        self.key = self.base / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.bashrc, self.processes, self.by_name = bashrc, [], {}
        self.switch = self._process("switch", ["sleep", "infinity"])
        self._switch("ip", "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        self._switch("ip", "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            self.by_name[name] = self._host(name, f"{net}.{10 + number}", laptop=number == 0)

    def __getitem__(self, name: str) -> Host:
        return self.by_name[name]

    def link(self, name: str, up: bool) -> None:
        """Plug the network cable of a host in or out, at the switch."""
        self._switch("ip", "link", "set", f"v-{name}", "up" if up else "down")

    def close(self) -> None:
        """End all hosts with everything that runs on them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait(30)
        shutil.rmtree(self.base, ignore_errors=True)

    def _process(self, name: str, command: list[str]) -> int:
        with open(self.base / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [*UNSHARE, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL), start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if process.poll() is None and (found := children.read_text().split()):
                return int(found[0])
            time.sleep(0.02)
        raise RuntimeError(f"{name} did not start: {(self.base / f'{name}.log').read_text()}")

    def _host(self, name: str, address: str, laptop: bool) -> Host:
        own = self.base / name
        own.mkdir()
        files = {"~/.bashrc": self.bashrc.get(name, ""), "~/.profile": "", "~/.ssh/config": "", "~/.bash_profile": ""}
        config = ""
        if not laptop:
            config = str(self.base / f"{name}.sshd")
            key = self.base / f"{name}.hostkey"
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
            Path(config).write_text(SSHD.format(key=key, authorized=self.key.with_suffix(".pub")))
        plan = self.base / f"{name}.json"
        # nodes don't see the project: what they run has to be brought to them; the laptop doesn't see the shared folder
        empty = [str(self.shared)] if laptop else [str(ROOT)]
        plan.write_text(
            json.dumps(
                {"name": name, "own": str(own), "address": address, "sshd": config, "files": files, "empty": empty,
                 "private": ["/root", sys.prefix, *([str(ROOT)] if laptop else [])]}
            )
        )  # fmt: skip
        script = self.base / "host_init.py"
        shutil.copy(HERE / "host_init.py", script)
        pid = self._process(name, [sys.executable, str(script), str(plan)])
        here = f"v-{name}"
        self._switch("ip", "link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", str(pid), outside=True)
        self._switch("ip", "link", "set", here, "master", "bridge")
        self._switch("ip", "link", "set", here, "up")
        host = Host(name, address, self.processes[-1], pid)
        deadline = time.monotonic() + 20
        while not Path(f"/proc/{pid}/root/run/ready").exists():
            if time.monotonic() > deadline or self.processes[-1].poll() is not None:
                raise RuntimeError(f"{name} did not start: {(self.base / f'{name}.log').read_text()}")
            time.sleep(0.05)
        return host

    def _switch(self, *command: str, outside: bool = False) -> None:
        space = ["--net"] if outside else ["--net", "--mount"]  # a process number means something outside only
        subprocess.run(["nsenter", "--target", str(self.switch), *space, "--", *command], check=True)
