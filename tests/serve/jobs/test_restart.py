"""What was accepted is done, also when the service is killed; it stops when asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from service import ROOT, Service, environment

from ldseg.bundle import Bundle


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
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = Service(bundle.path, data, tmp_path / "runs", "--replicas", "1").wait_ready()
    try:
        assert second.wait(cohort)["counts"]["done"] == 3
        for name in cases:
            assert second.maps(cohort, name) == service.maps(reference, name)
        assert not list((tmp_path / "runs" / "service" / "results").glob("*/.staging-*"))
    finally:
        status, seconds = second.stop(signal.SIGTERM)
    assert status == 0 and seconds < 60, second.log.read_text()[-2000:]
    assert "Traceback" not in second.log.read_text()


def run(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"platform/{program}.py", *options]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)


def test_mistakes_are_one_sentence(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    here = ("--data", str(data), "--out", str(tmp_path))
    for status, word, done in (
        (2, "no model bundle", run("serve_model", "--model", str(tmp_path), "--port", "0", "--runs", str(tmp_path))),
        (2, "no folder", run("serve_model", "--model", str(bundle.path), "--allow-root", str(tmp_path / "none"))),
        (1, "serve_model.py", run("segment", "--url", "http://127.0.0.1:9", *here)),
        (2, "no model bundle", run("segment", "--model", str(tmp_path), *here)),
        (
            2,
            "there is no folder",
            run("segment", "--model", str(bundle.path), "--data", "none", "--out", str(tmp_path)),
        ),
        (2, "--samples", run("segment", "--model", str(bundle.path), *here, "--samples", "0")),
    ):
        assert done.returncode == status and word in done.stderr, done
        assert "Traceback" not in done.stderr


def test_the_program_segments_without_a_service(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    options = ("--model", str(bundle.path), "--data", str(data), "--out", str(tmp_path), "--samples", "2")
    done = run("segment", *options, "--pictures", "1")
    assert done.returncode == 0, done.stderr
    agreements = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(("case_", "link"))]
    assert len(agreements) == 4 and agreements == sorted(agreements)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("*/*")}
    assert len(files) == 4 * 10  # label, two probabilities, entropy, variance, two samples, names, numbers, manifest
    assert run("segment", *options).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
