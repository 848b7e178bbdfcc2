"""A worker in its own process: claims and finishes cases until there are none, and prints what it finished."""

from __future__ import annotations

import sys

from serve.store import JobStore


def main(url: str, worker: str, lease_s: float) -> None:
    store = JobStore(url)
    print("ready", flush=True)
    sys.stdin.readline()
    while (work := store.claim(worker, lease_s)) is not None:
        if store.finish(work, worker, "done", result={"by": worker}):
            print(work.cohort, work.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
