"""The file that SQLite keeps jobs in: nobody else reads it, and one that is gone takes no more."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from stores import LEASE_S, add

from serve.store import JobStore, StoreAway, sqlite_url


def test_only_the_services_user_may_read_it(tmp_path: Path) -> None:
    loose = tmp_path / "jobs.db"
    JobStore(sqlite_url(loose)).close()
    loose.chmod(0o644)  # as an earlier version left it
    before = os.umask(0o000)
    try:
        stores = [JobStore(sqlite_url(path)) for path in (loose, tmp_path / "new.db")]
        for store in stores:
            add(store, "a")
        files = [*tmp_path.iterdir()]
        assert {path.name for path in files} >= {"jobs.db", "jobs.db-wal", "new.db", "new.db-shm"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    finally:
        os.umask(before)
    for store in stores:
        store.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_one_that_is_gone_takes_nothing_and_is_not_made_anew(tmp_path: Path, how: str) -> None:
    path, aside = tmp_path / "jobs.db", tmp_path / "aside.db"
    store = JobStore(sqlite_url(path))
    cohort = add(store, "a")
    path.rename(aside)
    if how == "replaced":
        path.write_bytes(b"")
    calls = (lambda: add(store, "b"), lambda: store.claim("w", LEASE_S), lambda: store.cohort(cohort, None))
    for call in calls:
        with pytest.raises(StoreAway, match="was removed or replaced while the service ran; put it back"):
            call()
    assert path.exists() == (how == "replaced")
    aside.replace(path)
    assert store.cohort(cohort, None).counts["queued"] == 1 and add(store, "b")
    store.close()


def test_one_that_is_removed_in_a_transaction_is_told_before_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = JobStore(sqlite_url(path))
    with pytest.raises(StoreAway, match="was removed or replaced"):
        with store.database.write():
            path.unlink()
    store.close()
