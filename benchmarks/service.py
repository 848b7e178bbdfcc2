#!/usr/bin/env python
"""What the service costs and what it bears: each part prints one table, and without options each runs in short.

--throughput    cases a second over HTTP, beside the bare loop of the posterior on the same cores
--ten-thousand  a cohort of 10,000 small cases: the post, the pages of its listing, the memory while it is done
--post          the time from a post to its 202 while 50 clients post
--upload        an upload of 1 GB: its speed, and how much the processes grow
--fan-out       what spreading a case over samplers costs

But for --throughput the samplers take a fixed time and compute nothing.

Example:
    python benchmarks/service.py
    python benchmarks/service.py --throughput --data Task04_Hippocampus/imagesTr --cases 60 --samples 8 32
    python benchmarks/service.py --fan-out --actors 8 --serve-handles
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


DATA = ROOT.parent / "shared" / "data" / "hippocampus" / "imagesTr"


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for part in PARTS:
        add(f"--{part}", action="store_true", help=argparse.SUPPRESS)
    add("--data", type=Path, default=DATA, help="--throughput: volumes, else phantoms (default: %(default)s)")
    add("--cases", type=int, help="--throughput: (default: 60), --ten-thousand: (default: 10000)")
    add("--samples", type=int, nargs="+", default=[8], metavar="K", help="--throughput: (default: 8)")
    add("--rounds", type=int, default=3, help="--throughput: (default: %(default)s)")
    add("--clients", type=int, default=50, help="--post: (default: %(default)s)")
    add("--posts", type=int, default=20, help="--post: of each client (default: %(default)s)")
    add("--megabytes", type=int, default=1024, help="--upload: (default: %(default)s)")
    add("--actors", type=int, nargs="+", default=[1, 8, 64], help="--fan-out: (default: 1 8 64)")
    add("--service", type=float, default=0.5, help="--fan-out: seconds a chunk (default: %(default)s)")
    add("--serve-handles", action="store_true", help="--fan-out: also by Ray Serve's handles; 200 MB a replica")
    return parser.parse_args()


def throughput(options: argparse.Namespace) -> str:
    """See `serving.throughput`."""
    from benchmarks.serving import throughput

    return throughput.run(options.data, options.cases or 60, options.samples, options.rounds)


def ten_thousand(options: argparse.Namespace) -> str:
    """See `serving.load`."""
    from benchmarks.serving import load

    return load.run(options.cases or 10_000)


def post(options: argparse.Namespace) -> str:
    """See `serving.posts`."""
    from benchmarks.serving import posts

    return posts.run(options.clients, options.posts)


def upload(options: argparse.Namespace) -> str:
    """See `serving.upload`."""
    from benchmarks.serving import upload

    return upload.run(options.megabytes)


def fan_out(options: argparse.Namespace) -> str:
    """See `serving.fan_out`."""
    from benchmarks.serving import fan_out

    return fan_out.run(options.actors, options.service, options.serve_handles)


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "throughput": throughput,
    "ten-thousand": ten_thousand,
    "post": post,
    "upload": upload,
    "fan-out": fan_out,
}
SHORT = {"cases": 20, "rounds": 1, "posts": 4, "megabytes": 256, "actors": [1, 8], "service": 0.2}


def main() -> int:
    """Run what is asked for, or everything in short."""
    options = parse()
    asked = [part for part in PARTS if getattr(options, part.replace("-", "_"))]
    if not asked:
        vars(options).update(SHORT)
    for part in asked or PARTS:
        print(f"\n{part}\n\n{PARTS[part](options)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
