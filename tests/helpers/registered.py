"""Tiny models in a real registry, with made-up scores."""

import json
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
