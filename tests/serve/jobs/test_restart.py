"""What was accepted is done, also when the service is killed; it stops when asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import programs
from service import ROOT, Service, environment

from ldseg.bundle import Bundle
from ldseg.commands import segment, serve


def test_an_unfinished_cohort_goes_on_after_kill_9_with_the_same_bytes(
    service: Service, bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    cases = {f"case_{k}": data / f"case_{k}.nii.gz" for k in range(3)}
    draws = {"samples": 32, "steps": 100, "seed": 3}
    reference = service.post(cases, **draws)  # by two samplers, undisturbed
    service.wait(reference)
    first = Service(bundle.path, data, tmp_path / "runs", "--replicas", "1", "--cases-in-flight", "1").wait_ready()
    cohort = first.post(cases, **draws)
    first.wait(cohort, "running")
    tokens = [first.ray_token()]
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = Service(bundle.path, data, tmp_path / "runs", "--replicas", "1").wait_ready()
    try:
        assert second.wait(cohort)["counts"]["done"] == 3
        for name in cases:
            assert second.maps(cohort, name) == service.maps(reference, name)
        assert not list((tmp_path / "runs" / "service" / "results").glob("*/.staging-*"))
        tokens.append(second.ray_token())
        assert [token.exists() for token in tokens] == [False, True], "the next start removes what kill -9 left"
    finally:
        status, seconds = second.stop(signal.SIGTERM)
    assert status == 0 and seconds < 60, second.log.read_text()[-2000:]
    assert not tokens[1].exists()
    assert "Traceback" not in second.log.read_text()


def test_mistakes_are_one_sentence(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    empty, model = str(tmp_path), str(bundle.path)
    case = ("--data", str(data), "--out", empty)
    for status, word, main, *options in (
        (2, "no model bundle", serve.main, "--model", empty, "--port", "0", "--runs", empty),
        (2, "no folder", serve.main, "--model", model, "--allow-root", str(tmp_path / "none")),
        (2, "serve_model.py", segment.main, "--url", "http://127.0.0.1:9", *case),
        (2, "no model bundle", segment.main, "--model", empty, *case),
        (2, "there is no folder", segment.main, "--model", model, "--data", "none", "--out", empty),
        (2, "--samples", segment.main, "--model", model, *case, "--samples", "0"),
    ):
        done = programs.run(main, *options)
        assert done.returncode == status and word in done.stderr, done


def test_the_program_segments_without_a_service(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    options = ("--model", str(bundle.path), "--data", str(data), "--out", str(tmp_path), "--samples", "2")
    command = [sys.executable, "platform/segment.py", *options, "--pictures", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    agreements = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(("case_", "link"))]
    assert len(agreements) == 4 and agreements == sorted(agreements)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("*/*")}
    assert len(files) == 4 * 10  # label, two probabilities, entropy, variance, two samples, names, numbers, manifest
    assert programs.run(segment.main, *options).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
