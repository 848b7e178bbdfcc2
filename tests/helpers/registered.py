"""Tiny models in a real registry, with made-up scores, and an MLflow server of a test's own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import random_bundle, tiny_config

from ldseg.bundle import load_bundle
from ldseg.orchestration.tracking.registry import register_bundle

CASES = tuple(f"case{i:02d}" for i in range(12))


def scores(dice=0.9, cases=CASES, *, prefix="sha256:image-", spread=0.02, **columns):
    """Rows of an evaluation; `dice` and each further column is a number or one for each case."""
    wave = spread * np.sin(np.arange(len(cases)))
    values = {"dice": np.broadcast_to(dice, len(cases)) + wave, "energy_score": 0.1, "nll": 0.1, "ece": 0.02}
    values |= {"seconds": 1.0, "samples": 8} | columns
    values = {"dice_organ": values["dice"], "dice_nodule": values["dice"]} | values
    rows = []
    for i, case in enumerate(cases):
        row = {"case": case, "content": f"{prefix}{case}", "labels": f"sha256:label-{case}"}
        for name, value in values.items():
            row[name] = value[i] if isinstance(value, list | tuple | np.ndarray) else value
        rows.append(row)
    return rows


def begin(tracker, name, tags=None, experiment="test"):
    """A run of MLflow as other programs make it; returns its id."""
    tags = {"ldseg.name": name} | (tags or {})
    return tracker.client.create_run(tracker.experiment(experiment), run_name=name, tags=tags).info.run_id


def with_card(card):
    """For `register`: the bundle's card says this, and no split."""

    def change(bundle):
        content = json.loads((bundle.path / "card.json").read_text())
        content.pop("split")
        (bundle.path / "card.json").write_text(json.dumps(content | card))

    return change


def register(tracker, folder: Path, name, seed, rows, *, change=None, config=None):
    """A random bundle, changed by `change`, as a new version; returns it and its number."""
    bundle = random_bundle(folder / f"bundle-{name}-{seed}", config or tiny_config(2), seed=seed)
    if change is not None:
        change(bundle)
    run = begin(tracker, f"{name}-{seed}")
    tables = None
    if rows is not None:
        tables = folder / f"tables-{name}-{seed}"
        tables.mkdir()
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = pa.table({key: [row.get(key) for row in rows] for key in columns})
        pq.write_table(table, tables / "cases.parquet")
    version = register_bundle(tracker, bundle.path, name, run_id=run, metrics={}, evaluation=tables)
    tracker.client.set_terminated(run)
    return load_bundle(bundle.path), version


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def mlflow_server(folder, port):
    """Its address; what it holds lies in the folder and is there again with the next one."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "a")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        while True:
            try:
                opener.open(f"{url}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
