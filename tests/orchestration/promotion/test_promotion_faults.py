"""Two promotions at once, and kill -9 between the record and the alias: real processes, real signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from registered import register, scores

from ldseg import ROOT
from ldseg.orchestration.promotion.champion import HEAD, show_history, state
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.promotion.journal import locked, read_history
from ldseg.orchestration.promotion.promote import promote, rollback
from ldseg.orchestration.tracking import mlflow_client

GATES = Gates()

# forks a process for each line of "home where action name"; it dies by SIGKILL in the place that is named
KILLED = """
import os, signal, sys
from pathlib import Path
import ldseg.orchestration.promotion.champion as ledger
from ldseg.orchestration.tracking import mlflow_client as tracking
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.promotion.promote import promote, rollback
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
def work(home, where, action, name):
    tracker = tracking.connect(Path(home))
    if where == "artifact":
        ledger._log = die
    else:
        setattr(tracker.client, where, die)
    rollback(tracker, name) if action == "rollback" else promote(tracker, name, int(action), Gates())
for line in sys.stdin:
    child = os.fork()
    if not child:
        work(*line.split())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# the command, with more patience for the lock than a slow machine takes
PATIENT = """
import runpy, sys
import ldseg.orchestration.promotion.journal as history
history.LOCK_SECONDS = 600
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ALIAS, TAG = "set_registered_model_alias", "set_registered_model_tag"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return mlflow_client.connect(tmp_path_factory.mktemp("home"))


def _champion(tracker, name):
    alias = tracker.client.get_registered_model(name).aliases.get("champion")
    return None if alias is None else int(alias)


def _models(tracker, folder, name, count=3):
    for seed in range(count):
        register(tracker, folder, name, seed, scores(0.9 + 0.01 * seed))
    assert promote(tracker, name, 1, GATES).passed


@pytest.fixture(scope="module")
def kill(tracker):
    """Runs a promotion or a rollback in a process of its own, which is killed in the named place."""
    command = [sys.executable, "-c", KILLED]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def run(where, action, name):
        process.stdin.write(f"{tracker.home} {where} {action} {name}\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) == -signal.SIGKILL

    yield run
    process.stdin.close()
    assert process.wait(60) == 0


def _records(tracker, name):
    return [(r["action"], r["version"], r["before"]) for r in read_history(tracker.home).of(name)]


def _logged(tracker, name, version):
    run = tracker.client.get_model_version(name, str(version)).run_id
    return [Path(a.path).name.split("-")[1] for a in tracker.client.list_artifacts(run, "promotions")]


def _at_once(tracker, folder, name, versions):
    """The exit status and the output of promotions that all measured before any of them moved the alias."""
    command = str(ROOT / "platform" / "promote.py")
    program = [sys.executable, "-c", PATIENT, command, "--runs", str(tracker.home), name]
    logs, processes = [], []
    with locked(tracker.home):
        for i, version in enumerate(versions):
            logs.append(folder / f"stderr-{name}-{i}")
            with open(logs[-1], "w") as log:
                options = {"stdout": subprocess.PIPE, "stderr": log, "text": True, "cwd": ROOT}
                processes.append(subprocess.Popen([*program, version], **options))
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if all("another promotion is at work" in log.read_text() for log in logs):
                break
            time.sleep(0.1)
    shown = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], shown


def test_two_promotions_at_once_cannot_both_win(tracker, tmp_path):
    _models(tracker, tmp_path, "race")
    ends, shown = _at_once(tracker, tmp_path, "race", "23")
    assert sorted(ends) == [0, 1], shown
    winner = 2 + ends.index(0)
    loser = 5 - winner
    assert _champion(tracker, "race") == winner
    assert _records(tracker, "race")[1:] == [("promote", winner, 1), ("refuse", loser, winner)]
    words = f"it was measured against version 1, but now it is version {winner}: promote again"
    assert f"NO  same champion: {words}" in shown[loser - 2]
    assert show_history(tracker, "race")[1]


@pytest.mark.slow
def test_two_promotions_of_one_version_at_once_both_say_that_it_is_the_champion(tracker, tmp_path):
    _models(tracker, tmp_path, "twice", count=2)
    ends, shown = _at_once(tracker, tmp_path, "twice", "22")
    assert ends == [0, 0] and _champion(tracker, "twice") == 2
    said = sorted(text.strip().splitlines()[-1] for text in shown)
    assert said == ["champion of twice is version 2 already", "champion of twice is version 2, before it 1"]
    assert _records(tracker, "twice")[1:] == [("promote", 2, 1)] and show_history(tracker, "twice")[1]


def test_a_promotion_killed_between_the_record_and_the_alias_is_named_and_finished(tracker, kill, tmp_path):
    _models(tracker, tmp_path, "killed")
    kill(ALIAS, "2", "killed")
    assert _champion(tracker, "killed") == 1 and _records(tracker, "killed")[-1] == ("promote", 2, 1)
    number = read_history(tracker.home).records[-1]["number"]
    words = f"record {number} (promote to version 2) was written, but the alias champion of killed did not move"
    text, intact = show_history(tracker, "killed")
    assert words in text and "the next promotion or rollback mends it" in text and intact
    assert words in promote(tracker, "killed", 3, GATES, dry_run=True).text()
    assert _champion(tracker, "killed") == 1
    decision = promote(tracker, "killed", 3, GATES)
    assert f"mended: {words}" in decision.text() and (decision.before, decision.version) == (2, 3)
    assert _records(tracker, "killed") == [("promote", 1, None), ("promote", 2, 1), ("mend", 2, 1), ("promote", 3, 2)]
    assert _logged(tracker, "killed", 2) == ["promote", "mend"]
    assert [rollback(tracker, "killed").version for _ in range(2)] == [2, 1]
    assert not state(tracker, "killed").describe()


@pytest.mark.slow
def test_a_rollback_withdraws_a_killed_promotion_and_a_killed_rollback_is_finished_and_not_doubled(
    tracker, kill, tmp_path
):
    _models(tracker, tmp_path, "back")
    promote(tracker, "back", 2, GATES)
    kill(ALIAS, "3", "back")
    assert rollback(tracker, "back").version == 2 and _champion(tracker, "back") == 2
    assert not state(tracker, "back").describe() and promote(tracker, "back", 3, GATES).passed
    kill(ALIAS, "rollback", "back")
    assert _champion(tracker, "back") == 3 and state(tracker, "back").pending["version"] == 2
    assert rollback(tracker, "back").version == 2 and _champion(tracker, "back") == 2
    assert rollback(tracker, "back").version == 1


@pytest.mark.slow
@pytest.mark.parametrize(("where", "moved"), [("artifact", False), (TAG, True)])
def test_killed_before_the_artifact_or_after_the_alias_leaves_what_the_next_command_completes(
    tracker, kill, tmp_path, where, moved
):
    name = f"late-{moved}"
    _models(tracker, tmp_path, name, 2)
    kill(where, "2", name)
    assert _champion(tracker, name) == (2 if moved else 1)
    decision = promote(tracker, name, 2, GATES)
    assert decision.passed and decision.notes and "its process was killed" in decision.notes[0]
    assert _champion(tracker, name) == 2 and "promote" in _logged(tracker, name, 2)
    last = read_history(tracker.home).of(name)[-1]
    assert tracker.client.get_registered_model(name).tags[HEAD] == f"{last['number']}:{last['hash']}"
    assert not state(tracker, name).describe()


@pytest.mark.slow
def test_a_promotion_killed_halfway_is_not_finished_over_an_alias_that_was_moved_since(tracker, kill, tmp_path):
    _models(tracker, tmp_path, "since")
    kill(ALIAS, "2", "since")
    tracker.client.set_registered_model_alias("since", "champion", "3")
    decision = promote(tracker, "since", 3, GATES)
    assert "at version 3, moved by something else" in decision.notes[0] and _champion(tracker, "since") == 3
