"""What a case takes of the memory is told from its shape and the model, and refused before anything is made of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import random_bundle, tiny_config

from ldseg import ROOT
from ldseg.bundle import Bundle
from ldseg.config.memory import case_bytes, machine_bytes
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.volume import Volume
from ldseg.evaluation.calibrate import calibrate
from ldseg.evaluation.evaluate import evaluate
from ldseg.model import LDSeg
from ldseg.posterior.sampling import Posterior
from ldseg.precision import BFLOAT16, FLOAT32


@pytest.fixture(scope="module", params=[2, 3])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("model") / "bundle", tiny_config(request.param))


def noise(bundle: Bundle, side: int) -> Volume:
    dims = bundle.config.data.spatial_dims
    array = np.random.default_rng(0).normal(size=(1, *(side,) * dims)).astype(np.float32)
    return Volume("case", array, np.eye(4), Path("none"), None, dims, "sha256:1")


def test_networks_cost_the_same_for_each_voxel_whatever_the_chunk_is_made_of(bundle: Bundle) -> None:
    from ldseg.memory.cost import bytes_per_voxel

    one, same, many = (bytes_per_voxel(bundle.model, "cpu", FLOAT32.arithmetic("cpu"), chunk) for chunk in (1, 1, 64))
    rounded = bytes_per_voxel(bundle.model, "cpu", BFLOAT16.arithmetic("cpu"), 1)
    classes = bundle.config.data.num_classes
    assert one == same and 4 * (1 + classes) < rounded <= one < many


PROGRAM = """
import sys
sys.path[:0] = ["tests/helpers"]
from pathlib import Path
import numpy as np
from ldseg.bundle import load_bundle
from ldseg.data.volume import Volume
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.memory.cost import needed_bytes

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def volume(side):
    array = np.random.default_rng(0).normal(size=(1, *(side,) * dims)).astype(np.float32)
    return Volume("case", array, np.eye(4), Path("none"), None, dims, "sha256:1")

posterior = Posterior(load_bundle(Path(sys.argv[1])), precision="float32")
dims = posterior.config.data.spatial_dims
side = {2: 1024, 3: 128}[dims]
posterior.segment(volume(32), samples=4)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
posterior.segment(volume(side), samples=4)
voxels = side**dims
told = needed_bytes(posterior.config.data, posterior.bytes_per_voxel, voxels=voxels, grid_voxels=voxels, samples=4)
print((status("VmHWM") - before) / told)
"""


def test_what_is_told_is_what_a_case_takes(bundle: Bundle) -> None:
    """In a process of its own: the highest resident memory while a case is drawn and summarised."""
    command = [sys.executable, "-c", PROGRAM, str(bundle.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.4 < float(done.stdout.splitlines()[-1]) < 1.15  # stages don't all hold their most at the same time


def test_a_case_that_takes_more_than_it_may_is_refused_before_anything_is_made(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior, volume = Posterior(bundle), noise(bundle, 20)
    posterior.prepare(volume)
    monkeypatch.setattr(torch, "from_numpy", lambda *_: pytest.fail("something was made"))
    with pytest.raises(
        CaseError, match=r"case: its working grid of 24x24.* voxels takes .* with 1 samples, and a case"
    ):
        posterior.prepare(volume, limit=1000)


def test_many_samples_of_a_large_case_count(bundle: Bundle) -> None:
    posterior, volume = Posterior(bundle), noise(bundle, 20)
    posterior.prepare(volume, samples=1, limit=10**7)
    with pytest.raises(CaseError, match="take fewer samples"):
        posterior.prepare(volume, samples=10**6, limit=10**7)


def test_the_limit_is_the_environments_or_a_share_of_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LDSEG_CASE_GB", raising=False)
    assert 0.5 * machine_bytes() < case_bytes() < machine_bytes()
    monkeypatch.setenv("LDSEG_CASE_GB", "0.5")
    assert case_bytes() == 2**29
    for wrong in ("much", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("LDSEG_CASE_GB", wrong)
        with pytest.raises(ValueError, match="LDSEG_CASE_GB must be a number above 0"):
            case_bytes()


@pytest.fixture
def cases(bundle: Bundle, tmp_path: Path) -> list[Case]:
    """A rod of 30000 voxels in some hundred bytes, an image that is much, and one as usual, all labelled."""
    dims, found = bundle.config.data.spatial_dims, []
    for name, shape in (("rod", (30000, 1, 1)), ("large", (96, 96, 96)), ("small", (13, 12, 11))):
        image, label = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz"
        values = np.zeros(shape[:dims], np.uint8)
        values[1:3] = 1
        for path in (image, label):
            nib.save(nib.Nifti1Image(values if name != "small" or path is label else values + 1, np.eye(4)), path)
        found.append(Case(name=name, image=image, labels=(label,)))
    return found


def test_evaluate_and_calibrate_leave_out_what_is_too_large(
    bundle: Bundle, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDSEG_CASE_GB", {2: "0.002", 3: "0.05"}[bundle.config.data.spatial_dims])
    rows = {str(row["case"]): row for row in evaluate(bundle, cases).rows}
    assert ("ask for a working grid of" if bundle.config.data.spatial_dims == 3 else "and") in str(rows["rod"]["error"])
    assert "and a case may have" in str(rows["large"]["error"])
    assert "error" not in rows["small"] and rows["small"]["samples"] == 8
    told: list[str] = []
    calibrate(bundle, cases, progress=told.append)
    assert ["left out" in line for line in told] == [True, True, False]


def test_the_command_line_refuses_it_in_a_sentence_and_segments_the_rest(
    bundle: Bundle, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from ldseg.commands.segment import main

    (tmp_path / "data").mkdir()
    for case in cases:
        case.image.rename(tmp_path / "data" / case.image.name)
    monkeypatch.setenv("LDSEG_CASE_GB", {2: "0.002", 3: "0.05"}[bundle.config.data.spatial_dims])
    out = ["--out", str(tmp_path / "out"), "--samples", "2"]
    assert main(["--model", str(bundle.path), "--data", str(tmp_path / "data"), *out]) == 1  # some failed
    told = capsys.readouterr().out
    assert "failed: rod: " in told and "failed: large: its working grid of" in told
    assert (tmp_path / "out" / "maps" / "small").is_dir() and not (tmp_path / "out" / "maps" / "rod").exists()


def test_the_networks_of_the_model_that_ships_take_hundreds_of_bytes_a_voxel() -> None:
    from ldseg.bundle import load_bundle
    from ldseg.memory.cost import bytes_per_voxel

    model: LDSeg = load_bundle(ROOT / "models" / "hippocampus").model
    assert 300 < bytes_per_voxel(model, "cpu", FLOAT32.arithmetic("cpu"), 4) < 400
    assert 150 < bytes_per_voxel(model, "cpu", BFLOAT16.arithmetic("cpu"), 4) < 200
