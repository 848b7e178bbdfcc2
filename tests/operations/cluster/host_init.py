"""The first process of a host: its own mounts, its SSH server; it reaps what others leave behind.

python host_init.py HOST.json
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def private(path: str, base: Path, name: str) -> None:
    """The host's own version of a folder: what it writes there nobody else sees."""
    upper, work = base / f"{name}.upper", base / f"{name}.work"
    for folder in (upper, work):
        folder.mkdir()
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", path)


def empty(path: str, base: Path) -> None:
    """A folder without its content, but for the Python that runs this, should it lie there."""
    kept = Path(sys.prefix).is_relative_to(path)
    if kept:
        (base / "python").mkdir()
        mount("--bind", sys.prefix, str(base / "python"))
    mount("-t", "tmpfs", "none", path)
    if kept:
        Path(sys.prefix).mkdir(parents=True)
        mount("--bind", str(base / "python"), sys.prefix)


def main() -> None:
    ctypes.CDLL(None).prctl(1, 9)  # dies with the process that made it
    host = json.loads(Path(sys.argv[1]).read_text())
    own = Path(host["own"])
    mount("-t", "tmpfs", "none", str(own))
    for number, path in enumerate(host["private"]):
        private(path, own, str(number))
    for path in host["empty"]:
        empty(path, own)
    for path in ("/tmp", "/run", "/dev/shm"):
        mount("-t", "tmpfs", "none", path)
    os.chmod("/tmp", 0o1777)
    subprocess.run(["hostname", host["name"]], check=True)
    for path, text in host["files"].items():
        file = Path(path).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o600)
    Path("/run/sshd").mkdir()
    while not Path("/sys/class/net/eth0").exists() and "eth0" not in Path("/proc/net/dev").read_text():
        time.sleep(0.02)
    for command in ("link set lo up", "link set eth0 up", f"addr add {host['address']}/24 dev eth0"):
        subprocess.run(["ip", *command.split()], check=True)
    if host["sshd"]:
        subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", host["sshd"]], stdin=subprocess.DEVNULL)
    Path("/run/ready").touch()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.1)


if __name__ == "__main__":
    main()
