"""The whole way through the house on one machine: phantoms, search, training, promotion, service, a segmented cohort.

Each step is one of the operator's own commands, printed before it runs, so that it can be repeated by hand.

Example:
    python platform/demo.py --home runs/demo
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldseg import ROOT
from ldseg.commands import Parser


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run every step; the first that fails ends the demonstration with its exit status."""
    parser = Parser(__doc__, prog, status="Exit status: 0 all steps are done, else that of the step that failed.")
    parser.add_argument("--home", type=Path, default=Path("runs/demo"), help="emptied first (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=48, help="phantom cases (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=2, help="trials of the search (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=24, help="epochs of a trial (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="samples of a case (default: %(default)s)")
    options = parser.parse_args(arguments)
    home, start = options.home.resolve(), time.monotonic()
    if home.exists() and not (home / ".ldseg-demo").exists():
        print(f"{home} exists and is no earlier demonstration; give another --home", file=sys.stderr)
        return 2
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / ".ldseg-demo").touch()
    os.environ.setdefault("LDSEG_TOKEN", secrets.token_urlsafe(24))  # of the service and of its client below
    data, port = home / "phantom", _free_port()
    here, url = shlex.quote(str(home)), f"http://127.0.0.1:{port}"
    cohort, out = shlex.quote(str(data)), shlex.quote(str(home / "segmented"))
    search = f"--trials {options.trials} --epochs {options.epochs} --top 1 --register ldseg"
    try:
        _step(
            "A cohort of phantoms whose posterior is known",
            f"phantom --out {cohort} --cases {options.cases}",
        )
        _step(
            "Search, training, evaluation, registration",
            f"tune --data {cohort} --space phantom3d --name demo {search} --runs {here}",
        )
        _step("Promotion through the gates", f"promote --name ldseg --min-dice 0.4 --runs {here}")
        with _service(f"--model models:/ldseg@champion --port {port} --allow-root {cohort} --runs {here}", url, home):
            _step(
                "A cohort over HTTP",
                f"segment --url {url} --data {cohort} --split test --samples {options.samples} "
                f"--out {out} --pictures 1",
            )
    except subprocess.CalledProcessError as error:
        print(f"\nThis step failed with exit status {error.returncode}: {' '.join(error.cmd)}", file=sys.stderr)
        return error.returncode or 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Everything lies under {home}")
    return 0


def _step(title: str, command: str) -> None:
    print(f"\n== {title}\n$ python -m ldseg {command}", flush=True)
    subprocess.run([sys.executable, "-m", "ldseg", *shlex.split(command)], cwd=ROOT, check=True)


@contextmanager
def _service(options: str, url: str, home: Path) -> Iterator[None]:
    """The service, ready, for the length of the block; then it gets Ctrl-C and ends by itself."""
    command = f"-m ldseg serve {options}"
    print(f"\n== The service\n$ python {command}", flush=True)
    with open(home / "service.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, *shlex.split(command)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_ready(process, f"{url}/health/ready", home / "service.log")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print("The service has stopped.", flush=True)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                print(f"ready at {url.removesuffix('/health/ready')}", flush=True)
                return
        except OSError:
            time.sleep(0.5)
    print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
    raise subprocess.CalledProcessError(process.poll() or 1, ["serve"])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
