"""Pages, cursors and events: a reader meets everything once, in order, while it changes."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from stores import LEASE_S, add, at_once, names

from serve.store import BadCursor, JobStore


def finish(store: JobStore, agreement: float | None, state: str = "done") -> str:
    work = store.claim("w", LEASE_S)
    assert store.finish(work, "w", state, result=None if agreement is None else {"numbers": {"agreement": agreement}})
    return work.name


def walk(store: JobStore, cohort: str, order: str, limit: int, between=lambda: None) -> list:
    cases, after = [], None
    while True:
        page = store.cases(cohort, owner="me", after=after, limit=limit, order=order)
        assert len(page.cases) == limit or page.next is None
        cases += page.cases
        if (after := page.next) is None:
            return cases
        between()


@pytest.mark.parametrize("limit", [1, 3, 4, 12, 13])
def test_the_lowest_agreement_comes_first_and_cases_without_one_last(store: JobStore, limit: int) -> None:
    cohort = add(store, *names("c", 12))
    given = [0.5, 0.1, None, 0.5, 1.0, 0.0, float("nan"), 1 / 3]
    for agreement in given:
        finish(store, agreement)
    order = [case.name for case in walk(store, cohort, "agreement", limit)]
    ranked = sorted((agreement, k) for k, agreement in enumerate(given) if agreement is not None and agreement >= 0)
    rest = [k for k in range(12) if k not in {k for _, k in ranked}]
    assert order == [f"c{k:05d}" for k in [*(k for _, k in ranked), *rest]]
    assert [case.name for case in walk(store, cohort, "posted", limit)] == names("c", 12)
    for _ in range(4):
        finish(store, None)
    ranked = add(store, *names("d", 12))
    for k in range(12):
        finish(store, 0.9 - k / 20)
    assert [case.name for case in walk(store, ranked, "agreement", limit)] == names("d", 12)[::-1]


@pytest.mark.parametrize("order", ["posted", "agreement"])
def test_cursors_meet_every_case_once_while_states_change(store: JobStore, order: str) -> None:
    cohort = add(store, *names("c", 60))
    agreements = iter([0.9, 0.2, 0.7, 0.1, 0.95, 0.3, 0.6, 0.0, 0.8, 0.4] * 10)
    for _ in range(20):
        finish(store, next(agreements))
    met = walk(store, cohort, order, 7, lambda: [finish(store, next(agreements)) for _ in range(4)])
    assert sorted(case.name for case in met) == names("c", 60)
    if order == "agreement":
        ranked = [case.agreement for case in met[:20]]
        assert ranked == sorted(ranked)


def test_cursors_that_no_page_told_are_refused(store: JobStore) -> None:
    cohort = add(store, "a", "b")
    posted = store.cases(cohort, owner=None, limit=1).next
    for after in ("", "x", "7", "p-1", "p" + "9" * 30, "a1:zero:0", "a1:0.5", "a0:none:1;--"):
        for order in ("posted", "agreement"):
            with pytest.raises(BadCursor):
                store.cases(cohort, owner=None, after=after, order=order)
    with pytest.raises(BadCursor):
        store.cases(cohort, owner=None, after=posted, order="agreement")
    with pytest.raises(ValueError, match="posted, agreement"):
        store.cases(cohort, owner=None, order="name")


def test_results_are_read_only_where_they_are_asked_for(store: JobStore) -> None:
    cohort = add(store, "a")
    finish(store, 0.5)
    assert store.cases(cohort, owner=None).cases[0].result is None
    assert store.cases(cohort, owner=None, results=True).cases[0].result == {"numbers": {"agreement": 0.5}}


def test_pages_of_cohorts_follow_each_other(store: JobStore) -> None:
    ids = [add(store, "a", owner="you" if k % 3 == 0 else "me") for k in range(12)]
    mine = [id for k, id in enumerate(ids) if k % 3][::-1]
    found, before = [], None
    while page := store.page("me", before, 3):
        found += page
        before = page[-1].number
        add(store, "late")
    assert store.page("me", 2**70, 1)[0].id != mine[0] and store.page("me", -1, 1) == []
    assert [cohort.id for cohort in found] == mine
    assert all(newer.number > older.number for newer, older in pairwise(found))


def test_events_tell_each_change_in_order(store: JobStore) -> None:
    cohort = add(store, "a", "b", "c")
    finish(store, 0.5)
    work = store.claim("w", LEASE_S)
    store.finish(work, "w", "failed", error="b: x", reason="unreadable")
    store.claim("w", LEASE_S)
    store.cancel(cohort)
    events = store.events(cohort, owner="me")
    assert [(event.name, event.state, event.reason) for event in events] == [
        (None, "queued", None),
        ("a", "running", None),
        (None, "running", None),
        ("a", "done", None),
        ("b", "running", None),
        ("b", "failed", "unreadable"),
        ("c", "running", None),
        ("c", "cancelled", None),
        (None, "cancelled", None),
    ]
    assert [event.number for event in events] == list(range(1, 10)) and store.cohort(cohort, None).events == 9
    assert all(earlier.at <= later.at for earlier, later in pairwise(events))
    assert store.events(cohort, owner="me", after=7) == events[7:]
    assert store.events(cohort, owner="me", after=2, limit=2) == events[2:4]
    assert store.events(cohort, owner="me", after=2**70) == []


def test_a_reader_that_follows_misses_no_event_of_many_writers(url: str, store: JobStore) -> None:
    cohort = add(store, *names("c", 120))
    stores = [JobStore(url) for _ in range(2)]

    def work(k: int) -> list:
        if k == 6:
            return follow(store, cohort)
        while (work := stores[k % 2].claim(f"w{k}", LEASE_S)) is not None:
            stores[k % 2].finish(work, f"w{k}", "done")
        return []

    *workers, seen = at_once(7, work)
    for other in stores:
        other.close()
    assert workers == [[]] * 6
    assert [event.number for event in seen] == list(range(1, 2 * 120 + 4))
    for name in names("c", 120):
        assert [event.state for event in seen if event.name == name] == ["running", "done"]


def follow(store: JobStore, cohort: str) -> list:
    seen: list = []
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and (not seen or (seen[-1].name, seen[-1].state) != (None, "done")):
        seen += store.events(cohort, owner=None, after=seen[-1].number if seen else 0)
    return seen


def test_old_events_of_finished_cohorts_are_purged(store: JobStore) -> None:
    finished, unfinished = add(store, *names("c", 20)), add(store, *names("d", 21))
    for _ in range(40):
        finish(store, None)
    assert store.purge_events(keep_last=5, finished_s=60) == 0
    assert store.purge_events(keep_last=5, finished_s=-1) == 38
    assert [event.number for event in store.events(finished, owner=None)] == [39, 40, 41, 42, 43]
    assert store.cohort(finished, None).purged == 38 and store.cohort(unfinished, None).purged == 0
    assert len(store.events(unfinished, owner=None)) == 42
    assert store.purge_events(keep_last=5, finished_s=-1) == 0


def test_the_queue_is_counted(store: JobStore) -> None:
    assert store.queue().queued == 0 and store.queue().oldest is None
    first = add(store, *names("c", 5))
    add(store, "u", upload=True)
    created = store.cohort(first, None).created
    queue = store.queue()
    assert (queue.queued, queue.uploads, queue.running, queue.failed) == (6, 1, {}, {})
    assert queue.oldest == created
    for worker, reason in (("x", "broken"), ("x", None), ("y", "broken")):
        store.finish(store.claim(worker, LEASE_S), worker, "failed", reason=reason)
    store.claim("x", LEASE_S), store.claim("y", LEASE_S)
    queue = store.queue()
    assert (queue.queued, queue.uploads, queue.running) == (1, 0, {"x": 1, "y": 1})
    assert queue.failed == {"broken": 2, "": 1}
