"""The job store alone: nothing is lost, nothing is done twice, what was cancelled stays so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve.settings import Settings, SettingsError, hash_token, resolve_image
from serve.store import JobStore


def add(store: JobStore, *names: str, upload: bool = False) -> str:
    return store.add([(name, f"/{name}") for name in names], samples=2, steps=None, seed=0, upload=upload)


def test_each_case_is_claimed_once_by_many_threads(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    add(store, *[f"c{k}" for k in range(40)])
    with ThreadPoolExecutor(8) as pool:
        claimed = [work.name for work in pool.map(lambda _: store.claim(), range(50)) if work is not None]
    assert sorted(claimed) == sorted(f"c{k}" for k in range(40))


def test_uploads_go_first_and_the_rest_in_order(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    add(store, "a", "b")
    add(store, "u", upload=True)
    assert [store.claim().name for _ in range(3)] == ["u", "a", "b"]
    assert store.claim() is None


def test_another_process_finds_running_cases_queued_again(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    cohort = add(store, "a", "b", "c")
    store.claim(), store.claim()
    store.finish(cohort, "a", "done", result={"x": 1})
    again = JobStore(tmp_path / "jobs.db")
    assert again.recover() == 2
    assert [case["state"] for case in again.cases(cohort, results=False)] == ["done", "queued", "queued"]
    assert again.case(cohort, "a")["result"] == {"x": 1}


def test_a_cancelled_case_can_not_become_done(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    cohort = add(store, "a", "b")
    store.claim()
    assert store.cancel(cohort) == ["a"]
    assert not store.finish(cohort, "a", "done", result={})
    assert store.cohort(cohort)["counts"]["cancelled"] == 2
    assert store.cancel(cohort) == [] and store.claim() is None and store.recover() == 0


def test_commits_are_on_the_disk(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.db")
    with store._transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_settings_refuse_unknown_keys_and_zero() -> None:
    with pytest.raises(SettingsError, match="replica"):
        Settings.from_dict({"model": "m", "replica": 1})
    with pytest.raises(SettingsError, match="replicas must be above 0"):
        Settings(model="m", replicas=0)
    settings = Settings(model="m", token_sha256=hash_token("right"))
    assert settings.accepts("right") and not settings.accepts("wrong") and not settings.accepts("")
    assert Settings.from_dict(settings.to_dict()) == settings


def test_links_out_of_an_allowed_folder_are_not_followed(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    root.mkdir()
    secret.write_text("x")
    (root / "link").symlink_to(secret)
    assert resolve_image("a/../b", (str(root),)) == root / "b"
    for image in ("link", "../secret", str(secret), f"{root}-more/x"):
        with pytest.raises(ValueError, match="may read"):
            resolve_image(image, (str(root),))
    with pytest.raises(ValueError, match="may read"):
        resolve_image(str(root / "b"), ())
