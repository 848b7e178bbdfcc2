"""A server that speaks S3, in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from pyarrow import fs


class Buckets:
    """The server; whoever has its environment reaches it.

    Attributes:
        env: what a process needs for it.
    """

    def __init__(self, port: int) -> None:
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        self.count = 0
        self.command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def new(self) -> str:
        """Address of an empty bucket."""
        self.count += 1
        storage, name = fs.FileSystem.from_uri(f"s3://bucket{self.count}?allow_bucket_creation=true")
        deadline = time.monotonic() + 300
        while True:
            try:
                storage.create_dir(name)
                return f"s3://bucket{self.count}"
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def write(url: str, content: bytes) -> None:
    """Put an object there."""
    storage, name = fs.FileSystem.from_uri(url)
    with storage.open_output_stream(name, compression=None) as file:
        file.write(content)


def read(url: str) -> bytes:
    """An object's content."""
    storage, name = fs.FileSystem.from_uri(url)
    with storage.open_input_stream(name, compression=None) as file:
        return bytes(file.read())


@pytest.fixture(scope="session")
def buckets() -> Iterator[Buckets]:
    """A server for all tests, which this process reaches too."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    before, made = dict(os.environ), Buckets(port)
    os.environ.update(made.env)
    yield made
    made.stop()
    os.environ.clear()
    os.environ.update(before)
