import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from ldseg import ROOT
from ldseg.config import ConfigError
from ldseg.files import DiskFullError
from ldseg.orchestration.tracking.run_log import METRICS, RunLog, read_json, read_lines

WRITER = """
import sys
from pathlib import Path
from ldseg.orchestration.tracking.run_log import RunLog
assert "mlflow" not in sys.modules and "torch" not in sys.modules
log = RunLog(Path(sys.argv[1]))
step = int(sys.argv[2])
while True:
    log.log({"loss": 1 / (step + 3), "val_dice": step / 7}, step)
    print(step, flush=True)
    step += 1
"""


def _log(folder, **options):
    return RunLog.create(folder / "run", "search", "trial", **options)


def _curves(log):
    """Each metric's value by step; the last line wins."""
    curves = {}
    for line in read_lines(log.folder):
        for key, value in line.metrics.items():
            curves.setdefault(key, {})[line.step] = value
    return curves


def test_a_writer_killed_at_any_instant_loses_and_doubles_nothing(tmp_path):
    log, rng, acknowledged = _log(tmp_path), random.Random(0), -1
    for _ in range(5):
        begin = max(0, acknowledged - 2)  # a resumed training repeats what came after its checkpoint
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(log.folder), str(begin)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        # as many as these are on the disk, however slow it is
        steps = [int(process.stdout.readline()) for _ in range(rng.randint(4, 12))]
        time.sleep(rng.uniform(0, 0.01))
        os.kill(process.pid, signal.SIGKILL)
        steps += [int(line) for line in process.stdout.read().splitlines()]
        process.wait()
        acknowledged = max(acknowledged, *steps)
    lines = read_lines(log.folder)
    steps = [line.step for line in lines]
    assert steps == list(range(len(steps))), "each step once and in order"
    assert len(steps) - 1 in (acknowledged, acknowledged + 1), "what was acknowledged is there"
    assert all(line.metrics == {"loss": 1 / (line.step + 3), "val_dice": line.step / 7} for line in lines)
    assert [line.time for line in lines] == sorted(line.time for line in lines)


def test_an_end_torn_at_any_byte_is_left_out_and_written_over(tmp_path):
    log = _log(tmp_path)
    log.log({"loss": 0.5}, 1)
    path = log.folder / METRICS
    first = path.read_bytes()
    log.log({"loss": 0.25, "bad": math.nan}, 2)
    whole = path.read_bytes()
    for cut in range(len(first), len(whole)):
        path.write_bytes(whole[:cut])
        assert [line.step for line in read_lines(log.folder)] == [1]
        again = RunLog(log.folder)
        assert again.log({"loss": 0.125}, 2) == 1
        assert _curves(log) == {"loss": {1: 0.5, 2: 0.125}}
        assert path.read_bytes().startswith(first) and len(path.read_bytes().splitlines()) == 2


def test_a_line_that_the_disk_has_spoilt_costs_only_itself(tmp_path, caplog):
    log = _log(tmp_path)
    for step in range(3):
        log.log({"loss": float(step)}, step)
    path = log.folder / METRICS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    assert _curves(log) == {"loss": {0: 0.0, 2: 2.0}} and "can't be read" in caplog.text
    assert RunLog(log.folder).log({"loss": 1.0}, 1) == 1


def test_a_step_keeps_its_first_value_and_a_new_metric_may_join_it(tmp_path):
    log = _log(tmp_path)
    assert log.log({"loss": 1.0, "dice": math.inf}, 4) == 2
    assert RunLog(log.folder).log({"loss": 9.0, "nll": 3.0}, 4) == 1
    assert log.log({"loss": 7.0, "nll": 7.0}, 4) == 0, "what another process has written counts too"
    assert _curves(log) == {"loss": {4: 1.0}, "dice": {4: math.inf}, "nll": {4: 3.0}}


def test_the_last_line_of_a_step_wins_where_a_file_has_two(tmp_path):
    log = _log(tmp_path)
    lines = [{"time": t, "step": 1, "metrics": {"loss": value}} for t, value in ((1, 0.5), (2, 0.25))]
    (log.folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _curves(log) == {"loss": {1: 0.25}}


def _append_many(folder, key):
    log = RunLog(folder)
    return sum(log.log({key: float(step), "shared": 1.0}, step) for step in range(50))


def test_processes_may_write_at_once(tmp_path):
    log = _log(tmp_path)
    with ProcessPoolExecutor(3) as pool:
        counts = list(pool.map(_append_many, [log.folder] * 3, ["a", "b", "c"]))
    assert sum(counts) == 3 * 50 + 50, "the shared metric was written once a step"
    assert all(len(curve) == 50 for curve in _curves(log).values()) and set(_curves(log)) == {"a", "b", "c", "shared"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_whole_lines(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here")
    try:
        log, step = _log(disk), 0
        with pytest.raises(DiskFullError, match="the disk is full under"):
            for step in range(10_000):
                log.log({f"metric {i}": step / 3 for i in range(20)}, step)
        assert step > 5 and (log.folder / METRICS).read_bytes().endswith(b"\n")
        assert [line.step for line in read_lines(log.folder)] == list(range(step))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_opening_again_adds_what_mlflow_allows(tmp_path, caplog):
    first = _log(tmp_path, parameters={"lr": 0.1, "empty": ""}, tags={"host": "a"}, parent="study")
    again = _log(tmp_path, parameters={"lr": 0.2, "new": "x" * 9000}, tags={"host": "b"}, parent="study")
    assert again.info.parameters == {"lr": "0.1", "empty": "", "new": "x" * 6000} and again.info.tags == {"host": "b"}
    assert (again.info.uid, again.info.start) == (first.info.uid, first.info.start)
    assert "keeps the first value of its parameters lr" in caplog.text
    with pytest.raises(ConfigError, match="name 'trial' and not 'other'"):
        RunLog.create(tmp_path / "run", "search", "other", parent="study")
    with pytest.raises(ConfigError, match="letters, digits"):
        RunLog.create(tmp_path / "x", "search", "o'ther")
    with pytest.raises(FileNotFoundError):
        RunLog(tmp_path / "nowhere")


def test_a_run_ends_and_goes_on(tmp_path):
    log = _log(tmp_path)
    log.end("FAILED", "out of memory")
    before = (log.folder / "end.json").read_bytes()
    log.end("FAILED", "out of memory")
    assert read_json(log.folder / "end.json")["status"] == "FAILED" and (log.folder / "end.json").read_bytes() == before
    log.reopen()
    log.reopen()
    assert not read_json(log.folder / "end.json")
    with pytest.raises(ValueError, match="one of FINISHED, FAILED, KILLED"):
        log.end("DONE")
