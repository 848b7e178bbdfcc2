"""A large upload, streamed: how fast it goes in, and how much the processes grow meanwhile."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.serving.process import Process, table, tiny_model

PIECE = 2**18
BOUNDARY = "----ldseg"
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="large.nii"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


def image(megabytes: int) -> Iterator[bytes]:
    """A NIfTI file that is never in one piece."""
    import nibabel as nib
    import numpy as np

    head = nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), np.eye(4)).header
    head.set_data_shape((1024, 256, megabytes))
    head.set_data_offset(352)
    yield bytes(head.binaryblock) + bytes(4)
    piece = np.random.default_rng(0).bytes(PIECE)
    for _ in range(megabytes * 2**20 // PIECE):
        yield piece


def upload(port: int, megabytes: int, *, declared: bool) -> tuple[int, float]:
    """Status and seconds of one upload; without its length declared it comes in chunks."""
    size = megabytes * 2**20 + 352 + len(HEAD) + len(TAIL)
    length = f"Content-Length: {size}" if declared else "Transfer-Encoding: chunked"
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=600) as sock:
        sock.sendall(f"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode())
        for piece in _pieces(megabytes):
            sock.sendall(piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece))
        if not declared:
            sock.sendall(b"0\r\n\r\n")
        answer = sock.recv(2**16)
    return int(answer[9:12]), time.perf_counter() - start


def _pieces(megabytes: int) -> Iterator[bytes]:
    yield HEAD
    yield from image(megabytes)
    yield TAIL


def run(megabytes: int) -> str:
    """The table."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(folder / "model")
        (folder / "data").mkdir()
        with Process(model, folder / "data", folder / "runs", 0.1, replicas=1) as service:
            upload(service.port, 16, declared=True)  # what a first call sets up is no part of it
            for declared in (True, False):
                with service.growth() as growth:
                    status, seconds = upload(service.port, megabytes, declared=declared)
                if status != 201:
                    raise RuntimeError(f"the upload was answered {status}; the log is {service.log}")
                grown = {f"{name}: grown by at most, MB": value for name, value in growth.items()}
                row = {"MB": megabytes, "length": "declared" if declared else "in chunks"}
                rows.append(row | {"s": seconds, "MB/s": megabytes / seconds} | grown)
    return table(rows)
