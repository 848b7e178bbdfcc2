"""The job store: nothing is lost, nothing is done twice, what was cancelled stays so; on both databases."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from dicoms import affine_lps, write_series
from stores import LEASE_S, add, at_once, names

from ldseg.posterior.plan import SamplePlan
from serve.http.problems import Problem
from serve.intake.paths import resolve, resolve_image
from serve.settings import Settings, SettingsError
from serve.store import JobStore, KeyConflict, NewCohort, QueueFull, StoreError


def claim(store: JobStore, worker: str = "w", lease_s: float = LEASE_S):
    return store.claim(worker, lease_s)


def states(store: JobStore, cohort: str) -> dict[str, str]:
    return {case.name: case.state for case in store.every_case(cohort, owner=None)}


def test_work_is_what_was_posted(store: JobStore) -> None:
    plan = SamplePlan(min=8, max=64, tolerance=0.01)
    models = ("models:/a@champion", "models:/b/3")
    new = NewCohort(owner="me", plan=plan, steps=7, seed=2**63 - 1, models=models, priority=-3)
    cohort, created = store.add(new, [("a", "/x/a.nii")])
    work = claim(store)
    assert created and (work.cohort, work.name, str(work.image)) == (cohort, "a", "/x/a.nii")
    assert (work.owner, work.plan, work.steps, work.seed, work.models) == ("me", plan, 7, 2**63 - 1, models)
    assert (work.upload, work.priority, work.attempts) == (False, -3, 1)
    assert store.finish(work, "w", "done", result={"numbers": {"agreement": 0.25, "x": float("nan")}}, model_digest="d")
    case = store.case(cohort, "a", owner="me")
    assert (case.state, case.agreement, case.model_digest) == ("done", 0.25, "d")
    assert str(case.result["numbers"]["x"]) == "nan"
    found = store.cohort(cohort, "me")
    assert found.plan == plan and found.models == models and found.state == "done" and found.finished is not None


def test_each_case_is_claimed_once_by_many_threads(store: JobStore) -> None:
    posted = [(cohort, name) for cohort in [add(store, *names("c", 40)) for _ in range(4)] for name in names("c", 40)]
    with ThreadPoolExecutor(12) as pool:
        works = [work for work in pool.map(lambda k: claim(store, f"w{k % 12}"), range(200)) if work is not None]
    assert Counter((work.cohort, work.name) for work in works) == Counter(posted)
    assert store.queue().queued == 0 and sum(store.queue().running.values()) == 160


def test_two_stores_on_one_database_never_share_a_case(url: str, store: JobStore) -> None:
    add(store, *names("c", 60))
    other = JobStore(url)
    claimed = at_once(8, lambda k: [work.name for _ in range(10) if (work := claim((store, other)[k % 2], f"w{k}"))])
    other.close()
    assert sorted(sum(claimed, [])) == names("c", 60)


def test_uploads_go_first_then_priority_then_the_older(store: JobStore) -> None:
    add(store, "low", priority=-1)
    add(store, "a", "b")
    add(store, "high", priority=10)
    add(store, "u", upload=True, priority=-10)
    assert [claim(store).name for _ in range(5)] == ["u", "high", "a", "b", "low"]
    assert claim(store) is None


def test_three_behind_three_thousand_are_served_alternately(store: JobStore) -> None:
    add(store, *names("big", 3000))
    for _ in range(50):
        claim(store)
    add(store, *names("small", 3))
    assert [claim(store).name[:3] for _ in range(7)] == ["big", "sma", "big", "sma", "big", "sma", "big"]


@pytest.mark.parametrize("cohorts", [1, 30, 100])
def test_an_owners_three_do_not_wait_for_anothers_three_thousand_in_however_many_cohorts(
    store: JobStore, cohorts: int
) -> None:
    for _ in range(cohorts):
        add(store, *names("big", 3000 // cohorts), owner="one")
    for _ in range(250):
        claim(store)
    add(store, *names("small", 3), owner="other")
    assert Counter(claim(store).name[:3] for _ in range(7)) == {"big": 4, "sma": 3}
    late = [add(store, *names("late", 2), owner=owner) for owner in ("third", "fourth", "one")]
    assert {claim(store).cohort for _ in range(3)} >= set(late[:2])


def test_an_owners_cohorts_share_its_turns_evenly_also_when_some_end(store: JobStore) -> None:
    sizes = (40, 1, 2, 40, 1)
    posted = [add(store, *names("c", size), owner="one") for size in sizes]
    other = add(store, *names("o", 84), owner="other")
    order = [claim(store).cohort for _ in range(168)]
    assert all(abs(order[:k].count(other) - k / 2) <= 3 for k in range(168)), "half is the other's at any time"
    assert all(posted.index(cohort) in (0, 3) for cohort in order[20:] if cohort != other), "small ones don't wait"
    assert abs(order[:100].count(posted[0]) - order[:100].count(posted[3])) <= 2


def test_a_cohort_that_comes_back_to_the_queue_neither_waits_nor_floods(store: JobStore) -> None:
    add(store, *names("a", 20))
    for _ in range(20):
        claim(store, "left")
    add(store, *names("b", 40))
    for _ in range(10):
        claim(store)
    assert store.release("left") == 20
    assert Counter(claim(store).name[0] for _ in range(10)) == {"a": 5, "b": 5}


def test_a_cancelled_case_can_not_become_done(store: JobStore) -> None:
    cohort = add(store, "a", "b", "c")
    first, second = claim(store), claim(store)
    assert store.finish(first, "w", "done", result={})
    assert store.cancel(cohort) == ["b"]
    assert not store.finish(second, "w", "done", result={}) and not store.finish(second, "w", "cancelled")
    assert states(store, cohort) == {"a": "done", "b": "cancelled", "c": "cancelled"}
    found = store.cohort(cohort, None)
    assert found.state == "cancelled" and found.counts["cancelled"] == 2 and found.finished is not None
    assert store.cancel(cohort) == [] and claim(store) is None


def test_an_end_said_again_is_done_once_and_true(store: JobStore) -> None:
    cohort = add(store, "a", "b")
    work = claim(store)
    assert store.finish(work, "w", "failed", error="a: x\0\udcff", reason="broken")
    assert store.finish(work, "w", "failed", error="again") and not store.finish(work, "w", "done")
    assert not store.finish(work, "other", "failed")
    assert store.case(cohort, "a", owner=None).error == "a: x?"
    assert store.cohort(cohort, None).counts["failed"] == 1 and store.queue().failed == {"broken": 1}
    with pytest.raises(ValueError, match="no end"):
        store.finish(claim(store), "w", "queued")


def test_the_same_key_and_body_posted_at_the_same_instant_is_one_cohort(url: str, store: JobStore) -> None:
    other = JobStore(url)
    new = NewCohort(owner="me", plan=SamplePlan.fixed(1), key="k", body_digest="d")
    answers = at_once(20, lambda k: (store, other)[k % 2].add(new, [("a", "/a")], max_cohorts=1))
    other.close()
    assert len({cohort for cohort, _ in answers}) == 1
    assert sorted(created for _, created in answers) == [False] * 19 + [True]
    assert len(store.page(None, None, 10)) == 1
    with pytest.raises(KeyConflict, match="another request"):
        store.add(NewCohort(owner="me", plan=SamplePlan.fixed(1), key="k", body_digest="e"), [("a", "/a")])
    stranger = NewCohort(owner="you", plan=SamplePlan.fixed(1), key="k", body_digest="e")
    assert store.add(stranger, [("a", "/a")])[1]


def test_limits_hold_for_posts_at_the_same_instant(url: str, store: JobStore) -> None:
    other = JobStore(url)
    new = NewCohort(owner="me", plan=SamplePlan.fixed(1))
    answers = at_once(10, lambda k: (store, other)[k % 2].add(new, [("a", ""), ("b", "")], max_cases_of_owner=7))
    other.close()
    full = [answer for answer in answers if isinstance(answer, QueueFull)]
    assert len(full) == 7 and full[0].limit == "max_cases_of_owner" and "6 of your cases" in str(full[0])
    store.add(NewCohort(owner="you", plan=SamplePlan.fixed(1)), [("a", "")], max_cases_of_owner=1, max_cohorts=1)
    with pytest.raises(QueueFull, match="3 of your cohorts") as error:
        store.add(new, [("a", "")], max_cohorts=3)
    assert error.value.limit == "max_cohorts"
    upload = NewCohort(owner="me", plan=SamplePlan.fixed(1), upload=True)
    first, _ = store.add(upload, [("a", "")], max_cohorts=1)
    with pytest.raises(QueueFull, match="1 of your uploads"):
        store.add(upload, [("a", "")], max_cohorts=1)
    store.add(NewCohort(owner="you", plan=SamplePlan.fixed(1), upload=True), [("a", "")], max_cohorts=1)
    store.cancel(first)
    store.add(upload, [("a", "")], max_cohorts=1)
    assert [store.unfinished(owner, upload=True) for owner in ("me", "you", "")] == [1, 1, 0]
    assert [store.unfinished(owner, upload=False) for owner in ("me", "you")] == [3, 1]


def test_what_is_refused_leaves_nothing_behind(store: JobStore) -> None:
    for cases in ([], [("a", ""), ("a", "")]):
        with pytest.raises(ValueError, match="its own name"):
            store.add(NewCohort(owner="me", plan=SamplePlan.fixed(1)), cases)
    for least, most, tolerance in ((0, 1, 0.0), (2, 1, 0.0), (1, 2, -0.1), (1, 2, float("nan"))):
        with pytest.raises(ValueError):
            SamplePlan(min=least, max=most, tolerance=tolerance)
    with pytest.raises(ValueError, match="priority"):
        NewCohort(owner="me", plan=SamplePlan.fixed(1), priority=11)
    assert store.page(None, None, 5) == [] and claim(store) is None


def test_another_owners_cohort_is_as_absent(store: JobStore) -> None:
    mine, yours = add(store, "a"), add(store, "a", owner="you")
    assert store.cohort(yours, "me") is None and store.cohort(mine, "me").owner == "me"
    assert store.case(yours, "a", owner="me") is None and store.case(yours, "a", owner="you") is not None
    assert store.cases(yours, owner="me").cases == () and store.events(yours, owner="me") == []
    assert list(store.every_case(yours, owner="")) == []
    assert [cohort.id for cohort in store.page("me", None, 10)] == [mine]
    assert [cohort.id for cohort in store.page(None, None, 10)] == [yours, mine]
    assert store.cohort(yours, None).owner == "you" and store.cohort("none", None) is None


def test_a_finished_cohort_can_be_forgotten(store: JobStore) -> None:
    cohort, other = add(store, "a"), add(store, "b")
    work = claim(store)
    assert not store.forget(cohort)
    store.finish(work, "w", "done")
    assert store.forget(cohort) and not store.forget(cohort)
    assert store.cohort(cohort, None) is None and store.case(cohort, "a", owner=None) is None
    assert store.events(cohort, owner=None) == [] and not store.finish(work, "w", "done")
    assert claim(store).cohort == other


def test_commits_are_on_the_disk(url: str, store: JobStore) -> None:
    with store.database.write() as connection:
        if url.startswith("sqlite"):
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


@pytest.mark.parametrize(
    "address", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "jobs.db", "postgresql+pg8000://x"]
)
def test_addresses_of_no_known_database_are_refused_in_a_sentence(address: str) -> None:
    with pytest.raises(StoreError, match="use sqlite:///PATH or postgresql"):
        JobStore(address)


def test_settings_refuse_unknown_keys_and_zero() -> None:
    with pytest.raises(SettingsError, match="replica"):
        Settings.from_dict({"model": "m", "replica": 1})
    with pytest.raises(SettingsError, match="replicas must be above 0"):
        Settings(model="m", replicas=0)
    with pytest.raises(SettingsError, match="replicas: Input should be a valid integer"):
        Settings.from_dict({"model": "m", "replicas": "two"})
    settings = Settings(model="m")
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


def test_no_file_that_an_image_is_made_of_leads_out_of_an_allowed_folder(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    series, others = (
        write_series(folder, np.ones((3, 4, 5)), affine_lps(np.eye(3), (1, 1, 1), (0, 0, 0)))
        for folder in (root / "series", elsewhere)
    )
    settings = Settings(model="m", allow_roots=(str(root),))
    assert resolve("series", settings, "") == str(min(series))
    assert resolve_image(str(series[2]), (str(root),)) == series[2]
    header = root / "a.mhd"
    header.write_text("ElementDataFile = a.raw\n")
    (root / "a.raw").write_bytes(b"0")
    assert resolve_image("a.mhd", (str(root),)) == header
    for part, image in ((series[1], str(series[2])), (root / "a.raw", "a.mhd")):
        part.unlink()
        part.symlink_to(others[1])
        with pytest.raises(ValueError, match=f"{part.name}.*leads out of what this service may read"):
            resolve_image(image, (str(root),))
    with pytest.raises(Problem, match="leads out of"):
        resolve("series", settings, "")


def test_a_link_that_leads_to_itself_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    for image in ("one", "one/more", str(tmp_path / "other")):
        with pytest.raises(ValueError, match="a symbolic link that leads to itself|may read"):
            resolve_image(image, (str(tmp_path),))


def test_the_services_own_folder_is_no_place_for_images_also_under_an_allowed_root(tmp_path: Path) -> None:
    settings = Settings(model="m", home=str(tmp_path / "runs"), allow_roots=(str(tmp_path),))
    assert resolve("a.nii", settings, "me") == str(tmp_path / "a.nii")
    for image in ("runs/service/results/0/a/a_dseg.nii.gz", str(settings.kept_uploads / "0" / "a.nii"), "runs/service"):
        with pytest.raises(Problem, match="service's own folder"):
            resolve(image, settings, "me")
