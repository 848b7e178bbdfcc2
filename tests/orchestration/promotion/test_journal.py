import json
import subprocess
import sys

import pytest

from ldseg.orchestration.promotion.journal import (
    HISTORY,
    START,
    HistoryError,
    append_record,
    champions,
    locked,
    read_history,
    record_hash,
)


def _write(home, *versions):
    for version in versions:
        append_record(home, {"action": "promote", "name": "m", "version": version, "before": None})


def test_each_record_holds_the_hash_of_the_one_before_and_its_own(tmp_path):
    _write(tmp_path, 1, 2, 3)
    history = read_history(tmp_path)
    assert [r["number"] for r in history.records] == [1, 2, 3] and not history.broken
    hashes = [r["hash"] for r in history.records]
    assert [r["previous"] for r in history.records] == [START, *hashes[:-1]] and history.head == hashes[-1]
    assert all(record_hash(r) == r["hash"] for r in history.records)


def _lines(home):
    return (home / HISTORY).read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1].replace('"version": 2', '"version": 9'), lines[2]], "line 2 does not match"),
        (lambda lines: [lines[0], lines[2]], "line 2 does not follow the line before it"),
        (lambda lines: [lines[1], lines[0], lines[2]], "line 1 does not follow the line before it"),
        (lambda lines: [lines[0], "nonsense\n", *lines[1:]], "line 2 is no JSON"),
        (lambda lines: [lines[0], "[]\n", *lines[1:]], "line 2 is no record"),
        (lambda lines: [lines[0], '{"name": "m"}\n', *lines[1:]], "line 2 has no hash"),
        (lambda lines: lines[1:], "line 1 does not follow the line before it"),
    ],
)
def test_a_changed_removed_moved_or_inserted_line_is_named_and_nothing_is_appended_to_it(tmp_path, change, message):
    _write(tmp_path, 1, 2, 3)
    (tmp_path / HISTORY).write_text("".join(change(_lines(tmp_path))))
    assert read_history(tmp_path).broken.startswith(message)
    before = (tmp_path / HISTORY).read_bytes()
    with pytest.raises(HistoryError, match=message):
        _write(tmp_path, 4)
    assert (tmp_path / HISTORY).read_bytes() == before


def test_a_line_rewritten_with_its_own_new_hash_breaks_the_chain_at_the_next(tmp_path):
    _write(tmp_path, 1, 2, 3)
    lines = _lines(tmp_path)
    forged = json.loads(lines[1]) | {"version": 9}
    lines[1] = json.dumps(forged | {"hash": record_hash(forged)}) + "\n"
    (tmp_path / HISTORY).write_text("".join(lines))
    assert read_history(tmp_path).broken == "line 3 does not follow the line before it"


def test_lines_of_the_time_before_the_chain_stay_and_become_part_of_it(tmp_path):
    old = {"name": "m", "version": 1, "before": None, "promoted": True, "action": "promote", "checks": ["ok  x"]}
    (tmp_path / HISTORY).write_text(json.dumps(old) + "\n")
    _write(tmp_path, 2)
    assert not read_history(tmp_path).broken and champions(read_history(tmp_path).of("m")) == [1, 2]
    lines = _lines(tmp_path)
    (tmp_path / HISTORY).write_text(lines[0].replace("true", "false") + lines[1])
    assert read_history(tmp_path).broken == "line 2 does not follow the line before it"


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_does_not_count_and_the_next_record_replaces_it_and_says_so(tmp_path, cut):
    _write(tmp_path, 1, 2)
    content = (tmp_path / HISTORY).read_bytes()
    (tmp_path / HISTORY).write_bytes(content[:-cut])
    history = read_history(tmp_path)
    assert len(history.records) == 1 and history.torn > 0 and not history.broken
    _write(tmp_path, 3)
    records = read_history(tmp_path).records
    assert [r["version"] for r in records] == [1, 3] and records[1]["torn"] == history.torn


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ("p1 p2 p3", [1, 2, 3]),
        ("p1 p2 p3 r2", [1, 2]),
        ("p1 p2 p3 r2 r1", [1]),
        ("p1 p2 r1 p3 r1", [1]),
        ("p1 p2 p1 r2", [1, 2]),
        ("p1 x2 p3 m3", [1, 3]),
        ("p1 f5 p2", [1, 5, 2]),
        ("p1 fN p2", [1, 2]),
    ],
)
def test_a_rollback_takes_one_step_off_the_champions(moves, expected):
    actions = {"p": "promote", "r": "rollback", "x": "refuse", "f": "found", "m": "mend"}
    records = [{"action": actions[m[0]], "version": None if m[1:] == "N" else int(m[1:])} for m in moves.split()]
    assert champions(records) == expected


def test_ten_records_of_two_processes_at_once_are_one_chain(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from ldseg.orchestration.promotion.journal import append_record, locked\n"
        "for i in range(5):\n"
        "    with locked(Path(sys.argv[1])):\n"
        "        append_record(Path(sys.argv[1]), {'name': 'm', 'version': i, 'action': 'refuse'})\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    history = read_history(tmp_path)
    assert len(history.records) == 10 and not history.broken


def test_a_lock_that_is_not_let_go_is_a_sentence_and_one_of_a_killed_process_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("ldseg.orchestration.promotion.journal.LOCK_SECONDS", 0.2)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from ldseg.orchestration.promotion.journal import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(HistoryError, match="another promotion has held .* end it and try again"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass
