"""The core's commands run where no extra is installed; the others say what to install."""

import subprocess
import sys

import pytest
from tiny import random_bundle, tiny_config

from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms

ABSENT = {
    "alembic", "fastapi", "httpx", "mlflow", "optuna", "plotly", "psycopg", "ray", "requests", "sqlalchemy",
    "starlette", "uvicorn", "yaml",
}  # fmt: skip
BLOCKED = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from ldseg.commands.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model with a card, and phantoms for it."""

    folder = tmp_path_factory.mktemp("core")
    random_bundle(folder / "model", tiny_config(2, ("organ", "lobe", "nodule")))
    shape = PhantomConfig(dims=2, cases=12, raters=1, shape=(16, 16), fractions=(0.0, 0.8, 0.2))
    write_phantoms(folder / "data", shape)
    return folder


def blocked(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", BLOCKED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_the_core_needs_no_extra(place):
    model, data, out = (str(place / name) for name in ("model", "data", "out"))
    for command, *options in (
        ("segment", "--out", out, "--samples", "2", "--split", "test", "--pictures", "1"),
        ("evaluate", "--out", out, "--samples", "2", "--limit", "2"),
        ("calibrate", "--samples", "2"),
    ):
        code, said, errors = blocked(command, "--model", model, "--data", data, *options)
        assert code == 0, f"{command}: {said} {errors}"
    assert (place / "out" / "table.csv").is_file() and (place / "model" / "calibration.json").is_file()


@pytest.mark.parametrize(
    "arguments, extra",
    [
        ("serve --model models/hippocampus --port 0", "serve"),
        ("tune --name n", "train"),
        ("train --name n --data d", "train"),
        ("promote ldseg", "train"),
        ("segment --url http://127.0.0.1:9 --data d --out o", "serve"),
        ("segment --model models:/ldseg@champion --data d --out o", "train"),
    ],
)
def test_a_missing_extra_is_one_sentence_with_the_cure(arguments, extra, tmp_path, monkeypatch):
    monkeypatch.setenv("LDSEG_HOME", str(tmp_path))
    code, said, errors = blocked(*arguments.split())
    command = arguments.split()[0]
    assert (code, said) == (2, "") and errors.startswith(f"ldseg {command} needs the extra [{extra}] (")
    assert errors.endswith(f": pip install 'ldseg[{extra}]'\n") and errors.count("\n") == 1
