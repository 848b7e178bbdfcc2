#!/usr/bin/env python
"""The whole way through the house on one machine: phantoms, search, training, promotion, service, a segmented cohort.

Each step is one of the operator's own commands, printed before it runs, so that it can be repeated by hand.

Example:
    python platform/demo.py --home runs/demo
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run every step; the first that fails ends the demonstration with its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--home", type=Path, default=ROOT / "runs" / "demo", help="emptied first (default: %(default)s)"
    )
    parser.add_argument("--cases", type=int, default=48, help="phantom cases (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=2, help="trials of the search (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of a trial (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="samples of a case (default: %(default)s)")
    options = parser.parse_args()
    home, start = options.home.resolve(), time.monotonic()
    if home.exists() and not (home / ".ldseg-demo").exists():
        print(f"{home} exists and is no earlier demonstration; give another --home", file=sys.stderr)
        return 2
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    (home / ".ldseg-demo").touch()
    data, port = home / "phantom", _free_port()
    try:
        _step(
            "A cohort of phantoms whose posterior is known",
            "-m",
            "ldseg.data.phantom",
            "--out",
            data,
            "--dims",
            "3",
            "--cases",
            options.cases,
        )
        _step(
            "Search, training, evaluation, registration", "platform/tune.py", "--data", data, "--space", "phantom3d",
            "--name", "demo", "--trials", options.trials, "--epochs", options.epochs, "--top", 1, "--register", "ldseg", "--runs", home,
        )  # fmt: skip
        _step(
            "Promotion through the gates", "platform/promote.py", "--name", "ldseg", "--min-dice", "0.5", "--runs", home
        )
        with _service(home, data, port):
            _step(
                "A cohort over HTTP", "platform/segment.py", "--url", f"http://127.0.0.1:{port}", "--data", data,
                "--split", "test", "--samples", options.samples, "--out", home / "segmented", "--pictures", 1,
            )  # fmt: skip
    except subprocess.CalledProcessError as error:
        print(f"\nThis step failed with exit status {error.returncode}: {' '.join(error.cmd)}", file=sys.stderr)
        return error.returncode or 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Everything lies under {home}")
    return 0


def _step(title: str, *arguments: object) -> None:
    command = [sys.executable, *map(str, arguments)]
    print(f"\n== {title}\n$ python {' '.join(command[1:])}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


@contextmanager
def _service(home: Path, data: Path, port: int) -> Iterator[None]:
    """The service, ready, for the length of the block; it gets Ctrl-C and ends by itself."""
    arguments = [
        "platform/serve_model.py",
        "--model",
        "models:/ldseg@champion",
        "--port",
        str(port),
        "--allow-root",
        str(data),
        "--runs",
        str(home),
    ]
    print(f"\n== The service\n$ python {' '.join(arguments)}", flush=True)
    with open(home / "service.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_ready(process, f"http://127.0.0.1:{port}/health/ready", home / "service.log")
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
    raise subprocess.CalledProcessError(process.poll() or 1, ["platform/serve_model.py"])


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
