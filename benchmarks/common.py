"""What the benchmarks share: options, tables, rows that are kept, processes of their own, models of random weights.

Importing it costs the standard library only: options are parsed before anything else is loaded, and Linux hands the
peak of a parent's memory on to the children that a benchmark measures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"type": Path, "required": True, "help": "a labelled cohort"},
    "model": {"type": Path, "required": True, "help": "a bundle"},
    "space": {"required": True, "help": "its base configuration is what is shipped"},
    "samples": {"type": int, "default": 8, "help": "of each case (default: %(default)s)"},
    "only": {"nargs": "+", "metavar": "ROW", "help": "these rows, or those that contain one of these words"},
    "minutes": {"type": float, "help": "of training (default: %(default)s)"},
    "out": {"type": Path, "required": True},
    "limit": {"type": int, "help": "only the first N cases of a split"},
    "chunk": {"type": int, "default": 4, "help": "latents denoised as one batch (default: %(default)s)"},
    "device": {"help": "cpu or cuda (default: cuda if there is one)"},
    "train-only": {"action": "store_true", "help": "leave the scores to another run, which finds the weights in OUT"},
    "set": {"action": "append", "default": [], "metavar": "KEY=JSON", "help": "override a setting; repeatable"},
    "worker": {"help": argparse.SUPPRESS},
}


class Options(argparse.ArgumentParser):
    """A benchmark's options: its docstring is its help, and those that several benchmarks have are named only."""

    def __init__(self, description: str | None, *shared: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        for name in shared:
            self.share(name)

    def share(self, name: str, **changed: Any) -> None:
        """One of `OPTIONS`, with what is other in this benchmark."""
        self.add_argument(f"--{name}", **OPTIONS[name] | changed)


def overrides(entries: Sequence[str]) -> dict[str, Any]:
    """What --set says.

    Raises:
        ValueError: an entry is not KEY=JSON.
    """
    pairs = [entry.partition("=") for entry in entries]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise ValueError(f"--set wants KEY=JSON, got {wrong[0]}")
    return {key: json.loads(value) for key, _, value in pairs}


def wanted(name: str, only: Sequence[str] | None, names: Collection[str]) -> bool:
    """Whether a row is asked for: by its whole name if one of the words is the name of a row, else by a word in it."""
    if not only or name in only:
        return True
    return not any(word in names for word in only) and any(word in name for word in only)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the columns of all rows in the order in which they appear; a float has three digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def text(value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"

    lines = [names, *([text(row.get(name, "")) for name in names] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(names) + "|", *body])


class Rows:
    """Rows of a table that are kept in a file as they are done, so that an interruption costs one of them at most.

    Args:
        key: the column that names a row.
    """

    def __init__(self, path: Path, key: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.key = path, key

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All that are done, those of other processes too."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def __contains__(self, name: str) -> bool:
        return any(row[self.key] == name for row in self.rows)

    def add(self, name: str, values: dict[str, Any]) -> None:
        """One more is done."""
        line = json.dumps({self.key: name, **values}) + "\n"
        with self.path.open("ab", buffering=0) as file:  # in one piece, so that processes may share the file
            file.write(line.encode())

    def table(self, columns: Sequence[str]) -> str:
        """Markdown, of these columns those that any row has; "nan" where one has none."""
        rows = self.rows
        names = [name for name in columns if any(name in row for row in rows)]

        def cell(value: float) -> str:
            return f"{value:.0f}" if value > 100 else f"{value:.3f}"

        def line(row: dict[str, Any]) -> dict[str, str]:
            return {"": row[self.key]} | {n.replace("_", " "): cell(row.get(n, float("nan"))) for n in names}

        return table([line(row) for row in rows])


def in_a_process(file: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a benchmark's --worker in a process of its own, so that peaks of memory don't mix; what its last line says.

    Raises:
        SystemExit: it failed, after it has said why.
    """
    done = subprocess.run([sys.executable, file, "--worker", json.dumps(job, default=str)], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def chosen_device(asked: str | None) -> str:
    """The device that was asked for, else a GPU if there is one."""
    import torch

    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def computer(device: str) -> dict[str, Any]:
    """What is told of the device after the work: its name, and the peak of a GPU's memory (None for a CPU)."""
    import torch

    if device.startswith("cuda"):
        return {"device": torch.cuda.get_device_name(), "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    return {"device": f"cpu, {torch.get_num_threads()} thread(s)", "gpu_peak_mib": None}


def random_model(folder: Path, settings: dict[str, Any]) -> Path:
    """A bundle of random weights, which is enough where only time is measured."""
    import torch

    from ldseg.bundle import save_bundle
    from ldseg.config import Config
    from ldseg.model import LDSeg

    config = Config.from_dict(settings)
    torch.manual_seed(0)
    save_bundle(folder, LDSeg(config), config, {"name": "random weights", "split": {}})
    return folder


def ball(shape: Sequence[int], seed: int = 0) -> Any:
    """An image of noise with a bright ellipsoid, float32."""
    import numpy as np

    radii = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in shape], indexing="ij", sparse=True)
    noise = np.random.default_rng(seed).normal(size=shape)
    return (noise + 3 * (sum(r**2 for r in radii) < 1)).astype(np.float32)


def segment_file(posterior: Any, image: Path, draws: Any, out: Path, *, keep_samples: int = 0) -> Any:
    """The summary of a case, from its file to its maps."""
    from ldseg.data.cohort import Case
    from ldseg.data.reading import read_image
    from ldseg.posterior.stopwatch import Stopwatch
    from ldseg.posterior.summary import write_summary

    watch, data = Stopwatch(), posterior.config.data
    with watch.stage("read"):
        volume = read_image(Case(name=image.name, image=image), data)
    summary = posterior.summarise(posterior.draw(volume, draws, watch), keep_samples=keep_samples)
    write_summary(summary, out, volume, data.structures)
    return summary


def labelled(data: Path, space: str, test_cases: Sequence[str] = ()) -> tuple[Any, Any]:
    """A cohort as a search space reads it, and the space's base configuration for it."""
    from ldseg.data.cohort import read_cohort
    from ldseg.orchestration.search.spaces import load_space, with_cohort

    base = dict(load_space(space).base)
    foreground_only = bool(base.get("data", {}).get("foreground_only", False))  # it reads instance maps
    cohort = read_cohort(data, test_cases=test_cases, foreground_only=foreground_only)
    return cohort, with_cohort(base, cohort)
