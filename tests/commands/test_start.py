"""Programs parse before they import, and are known by two names."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ldseg import ROOT, __version__
from ldseg.commands.main import COMMANDS

PROGRAMS = sorted(path.name for path in (ROOT / "platform").glob("*.py"))
LIMIT_S = 0.5  # of processor time
CASE_S = 5.0
IMAGES = ROOT.parent / "shared/data/hippocampus/imagesTr"


def run(*arguments: str) -> tuple[int, str, str, float]:
    """Exit status, output, errors and the seconds of processor time of a program."""
    before = os.times()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return done.returncode, done.stdout, done.stderr, seconds


def least(*arguments: str, status: int, limit_s: float = LIMIT_S) -> str:
    """What a program says, which the fastest of three runs says within the limit: the others may share their core."""
    seconds = []
    for _ in range(3):
        code, out, errors, took = run(*arguments)
        assert code == status, errors
        seconds.append(took)
        if took <= limit_s:
            return out + errors
    pytest.fail(f"{' '.join(arguments)} takes {min(seconds):.2f} s of processor time")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_in_platform_helps_and_refuses_a_misspelt_option_at_once(program):
    said = least(f"platform/{program}", "--help", status=0)
    assert f"usage: {program} " in said and f"python platform/{program}" in said and "--help" in said
    assert "--outt" in least(f"platform/{program}", *needed(program.removesuffix(".py")), "--outt", "x", status=2)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_helps_and_refuses_a_misspelt_option_at_once(name):
    said = least("-m", "ldseg", name, "--help", status=0)
    assert f"usage: ldseg {name} " in said and said.count(f"ldseg {name} ") > 1
    assert "platform/" not in said.replace("platform/gates.toml", "")
    assert "--outt" in least("-m", "ldseg", name, *needed(name.replace("-", "_")), "--outt", "x", status=2)


def needed(program: str) -> list[str]:
    """Options without which it is their lack that is told, and not the misspelt one."""
    names = {
        "segment": ["--model", "m", "--data", "d", "--out", "o"], "evaluate": ["--model", "m", "--data", "d"],
        "calibrate": ["--model", "m", "--data", "d"], "train": ["--name", "n"], "phantom": ["--out", "o"],
        "register": ["b", "n", "--data", "d"],
        "import_authors": "--label-encoder a --label-decoder b --image-encoder c --structures d --out o".split(),
    }  # fmt: skip
    return [*names.get(program, []), *(["--out", "o"] if program == "evaluate" else [])]


def test_the_command_lists_what_there_is_and_knows_its_version():
    said = least("-m", "ldseg", "--help", status=0)
    assert all(f"  {name} " in said for name in COMMANDS) and "Example:\n    ldseg segment --model" in said
    assert least("-m", "ldseg", "--version", status=0) == f"ldseg {__version__}\n"


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["sgment"], "there is no command 'sgment'; did you mean segment?"),
        (["xyz"], "there is no command 'xyz'; choose one of segment, evaluate"),
        ([], "a command is missing; choose one of segment, evaluate"),
    ],
)
def test_a_command_that_is_not_there_is_told_with_the_nearest(given, sentence):
    assert sentence in least("-m", "ldseg", *given, status=2)


def test_a_misspelt_key_of_a_configuration_is_refused_before_ray_is_even_imported(tmp_path):
    given = ["--name", "n", "--data", str(tmp_path), "--runs", str(tmp_path), "--set", "model.latent_chanels=8"]
    said = least("platform/train.py", *given, status=2)
    assert "unknown configuration key 'model.latent_chanels'; did you mean 'model.latent_channels'" in said
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_a_command_with_a_sentence(tmp_path):
    command = [sys.executable, "-m", "ldseg", "phantom", "--dims", "2", "--cases", "1000000", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "imagesTr").is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        assert process.communicate(timeout=60)[1] == "\nldseg phantom: stopped\n" and process.returncode == 130
    finally:
        process.kill()  # one that was started to ignore Ctrl-C would go on for hours


@pytest.mark.skipif(not IMAGES.is_dir(), reason="no hippocampi here")
def test_a_short_case_with_the_shipped_model_takes_five_seconds_with_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for one another count as work
    given = ["--model", "models/hippocampus", "--data", str(min(IMAGES.glob("*.nii.gz"))), "--out", str(tmp_path)]
    assert "table.csv" in least("platform/segment.py", *given, status=0, limit_s=CASE_S)
