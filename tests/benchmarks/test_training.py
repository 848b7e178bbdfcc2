"""Times of two kinds of update, measured in turns."""

from benchmarks.speed.training import BEFORE, in_turns


def test_works_take_turns_and_those_before_are_not_timed():
    calls = []
    seconds = in_turns({name: lambda name=name: calls.append(name) for name in ("ours", "theirs")}, 3, "cpu")
    assert calls == ["ours", "theirs"] * (BEFORE + 3)
    assert all(len(found) == 3 and min(found) >= 0 for found in seconds.values())
