#!/usr/bin/env python
"""What the service costs and what it bears: each part prints one table, and without a part each runs in short.

But for start and throughput the samplers take a fixed time and compute nothing.

Example:
    python benchmarks/service.py
    python benchmarks/service.py throughput --data Task04_Hippocampus/imagesTr --cases 60 --samples 8 32
    python benchmarks/service.py fan-out --actors 8
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import Options

SHORT = (
    "start --cases 3 --rounds 1",
    "throughput --cases 20 --rounds 1",
    "ten-thousand --cases 20",
    "post --posts 4",
    "upload --megabytes 256",
    "fan-out --actors 1 8 --service 0.2",
)
PARTS: dict[str, tuple[str, str]] = {  # the module that measures it, and what it is
    "start": ("start", "from the program's start to its address and to ready, and one case from its post to its end"),
    "throughput": ("throughput", "cases a second over HTTP, beside the bare loop of the posterior on the same cores"),
    "ten-thousand": ("load", "a cohort of many small cases: the post, the pages of its listing, the memory meanwhile"),
    "post": ("load", "the time from a post to its 202 while many clients post"),
    "upload": ("load", "a large upload: its speed, and how much the processes grow"),
    "fan-out": ("fan_out", "what spreading a case over samplers costs"),
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line: a part and its options, or nothing."""
    parser = Options(__doc__)
    parts = parser.add_subparsers(dest="part", metavar="PART", parser_class=argparse.ArgumentParser)
    own = {name: parts.add_parser(name, help=text, description=text) for name, (_, text) in PARTS.items()}

    def add(part: str, name: str, default: Any, text: str) -> None:
        many = isinstance(default, list)
        kind: dict[str, Any] = {"type": type(default[0]), "nargs": "+"} if many else {"type": type(default)}
        shown = " ".join(map(str, default)) if many else default
        own[part].add_argument(name, default=default, help=f"{text} (default: {shown})", **kind)

    for part in ("start", "throughput"):
        own[part].add_argument("--data", type=Path, help="a folder of volumes (default: phantoms)")
    add("start", "--cases", 10, "posted one after another")
    add("start", "--samples", 8, "of each case")
    add("start", "--rounds", 3, "starts")
    add("throughput", "--cases", 60, "of a round")
    add("throughput", "--samples", [8], "of each case")
    add("throughput", "--rounds", 3, "of which the median counts")
    add("ten-thousand", "--cases", 10_000, "of the cohort")
    add("post", "--clients", 50, "at the same time")
    add("post", "--posts", 20, "of each client")
    add("upload", "--megabytes", 1024, "of the file, more than 32")
    add("fan-out", "--actors", [1, 8, 64], "samplers")
    add("fan-out", "--service", 0.5, "seconds a chunk")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> str:
    """The table of a part."""
    values = vars(options)
    part = values.pop("part")
    module = import_module(f"benchmarks.serving.{PARTS[part][0]}")
    return f"\n{part}\n\n{getattr(module, part.replace('-', '_'))(**values)}"


def main() -> int:
    """Run what is asked for, or everything in short."""
    options = parse()
    for chosen in [options] if options.part else [parse(line.split()) for line in SHORT]:
        print(measure(chosen), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
