"""The wheel, installed away from the checkout, and the lock on the Pythons that it is for."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ldseg import ROOT, __version__

PACKAGES = ("ldseg", "serve", "tune_spaces")
DATA = ROOT.parent / "shared/data/hippocampus"
EXTRAS = ("ray", "mlflow", "optuna", "fastapi", "starlette", "sqlalchemy", "httpx")
TEN_LINES = """
import sys
from importlib.util import find_spec

import ldseg

assert "numpy" not in sys.modules and not ldseg.__file__.startswith(sys.argv[3]), ldseg.__file__
assert not [name for name in sys.argv[4:] if find_spec(name)]
model = ldseg.load(sys.argv[1])
result = model.segment(sys.argv[2], samples=8)
print(result)
shapes = {a.shape for a in (result.label, result.probability["anterior"], result.entropy)}
assert len(shapes) == 1 and result.volumes["anterior"].interval
result.save("out"); result.plot("case.png"); result.table()
cohort = ldseg.read_cohort("images")
for result in model.segment_many(cohort, samples=2):
    result.save("out")
assert len(list(__import__("pathlib").Path("out/maps").glob("hippocampus_*"))) == len(cohort.cases) == 2
"""


def run(*command: object, cwd: Path) -> str:
    """What a command says, in an environment that knows nothing of the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=1800, env=kept)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_there_is_one_version():
    named = re.findall(r"/ldseg:(\S+)", "".join(path.read_text() for path in (ROOT / "kubernetes").glob("*.yaml")))
    assert named and set(named) == {__version__}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of a copy, so that nothing that an earlier build left in the checkout gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        left_out = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", folder, folder / "source", cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_all_modules_and_what_they_read(wheel):
    assert wheel.name == f"ldseg-{__version__}-py3-none-any.whl"
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(p.relative_to(ROOT)) for top in ("ldseg", "serve", "tune_spaces") for p in (ROOT / top).rglob("*.py")
    }
    assert {name for name in modules if "node_modules" not in name} <= held
    assert {"ldseg/py.typed", "ldseg/orchestration/promotion/gates.toml", "serve/page/index.html"} <= held
    built = {str(path.relative_to(ROOT)) for path in (ROOT / "serve/page/dist").glob("*.*")}
    assert built <= held and not {name for name in held if name.split("/")[0] in ("tests", "platform", "benchmarks")}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no hippocampi here")
def test_the_core_segments_away_from_the_checkout_with_no_extra_installed(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv/bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run(*pip, wheel, "torch==2.13.0", cwd=tmp_path)
    images = sorted((DATA / "imagesTr").glob("*.nii.gz"))[:2]
    (tmp_path / "images").mkdir()
    for image in images:
        shutil.copy(image, tmp_path / "images")
    model = ROOT / "models/hippocampus"
    given = ["--model", model, "--data", images[0], "--out", tmp_path / "segmented", "--pictures", 1]
    assert images[0].name.split(".")[0] in run(programs / "ldseg", "segment", *given, cwd=tmp_path)
    run(programs / "python", "-c", TEN_LINES, model, images[0], ROOT, *EXTRAS, cwd=tmp_path)
    assert (tmp_path / "case.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_every_package_of_the_lock_has_a_wheel_for_later_pythons(version, tmp_path):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    # PyTorch is looked for under another address by those who take its build for CPUs
    (tmp_path / "lock.txt").write_text("\n".join(line for line in lines if not line.startswith("torch==")))
    options = ["--dry-run", "--no-deps", "--only-binary=:all:", "--python-version", version, "--target", "nowhere"]
    run(sys.executable, "-m", "pip", "install", "--quiet", *options, "-r", "lock.txt", cwd=tmp_path)
