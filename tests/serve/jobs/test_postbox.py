"""Posts of the same moment share a transaction, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ldseg.posterior.plan import SamplePlan
from serve.jobs.postbox import BATCH_SIZE, Postbox
from serve.store import Cohort, JobStore, KeyConflict, NewCohort, Post, QueueFull, StoreAway


def post(*names: str, key: str | None = None, digest: str = "d", **limits: int) -> Post:
    new = NewCohort(owner="me", plan=SamplePlan.fixed(1), key=key, body_digest=digest if key else None)
    return Post(cohort=new, cases=[(name, f"/{name}") for name in names], **limits)


def put(store: JobStore, *posts: Post) -> list[Any]:
    async def all_at_once() -> list[Any]:
        box = Postbox(store)
        return await asyncio.gather(*map(box.put, posts), return_exceptions=True)

    return asyncio.run(all_at_once())


def counted(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many posts each transaction held, from now on."""
    sizes: list[int] = []
    add_all = store.add_all

    def counting(posts: Any) -> Any:
        sizes.append(len(posts))
        return add_all(posts)

    monkeypatch.setattr(store, "add_all", counting)
    return sizes


def test_posts_of_one_moment_are_stored_in_few_transactions(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = counted(store, monkeypatch)
    told = put(store, *(post(f"a{k}", f"b{k}") for k in range(2 * BATCH_SIZE)))
    assert sizes == [BATCH_SIZE, BATCH_SIZE]
    assert len({cohort.id for cohort in told}) == 2 * BATCH_SIZE
    for k, cohort in enumerate(told):
        assert store.cohort(cohort.id, "me") == cohort
        assert [case.name for case in store.cases(cohort.id, owner="me").cases] == [f"a{k}", f"b{k}"]


def test_a_refused_post_does_not_touch_those_beside_it(store: JobStore) -> None:
    first, again, other, full, last = put(
        store,
        post("a", key="k"),
        post("a", key="k"),
        post("b", key="k", digest="e"),
        post("c", max_cohorts=1),
        post("d", max_cohorts=2),
    )
    assert isinstance(first, Cohort) and again.id == first.id
    assert isinstance(other, KeyConflict) and isinstance(full, QueueFull) and full.limit == "max_cohorts"
    assert isinstance(last, Cohort)
    assert {cohort.id for cohort in store.page("me", None, 10)} == {first.id, last.id}


def test_a_post_that_the_database_can_not_take_fails_alone(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = counted(store, monkeypatch)
    before, broken, after = put(store, post("a"), post("\ud800"), post("b"))
    assert isinstance(before, Cohort) and isinstance(after, Cohort)
    assert isinstance(broken, UnicodeError)
    assert sizes == [3, 1, 1, 1]
    assert {cohort.id for cohort in store.page("me", None, 10)} == {before.id, after.id}


def test_all_are_told_when_the_database_is_away(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(posts: Any) -> Any:
        raise StoreAway("gone")

    monkeypatch.setattr(store, "add_all", away)
    assert [type(error) for error in put(store, post("a"), post("b"))] == [StoreAway, StoreAway]


def test_who_goes_away_leaves_the_others_their_answers(store: JobStore) -> None:
    async def scenario() -> Any:
        box = Postbox(store)
        gone, stays = (asyncio.create_task(box.put(post(name))) for name in "ab")
        await asyncio.sleep(0)
        gone.cancel()
        told = await stays
        assert (await asyncio.gather(gone, return_exceptions=True))[0].__class__ is asyncio.CancelledError
        return told, await box.put(post("c"))

    stays, later = asyncio.run(scenario())
    assert {stays.id, later.id} <= {cohort.id for cohort in store.page("me", None, 10)}
