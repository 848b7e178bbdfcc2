"""How the files beside this one were made: by version 0.1.0, at the last commit before its modules moved into rooms.

    git worktree add --detach ../earlier 1eda604
    rm -rf /opt/earlier
    PYTHONPATH=../earlier python tests/earlier/make.py

bundle.zip    a model of random weights, calibrated, with the image it was asked about and what it answered
jobs.db.zip   a job store with cohorts that are done, at work (by a worker that fell silent), waiting and cancelled
home.zip      a home with a study that ended, one whose search was killed, a registered champion and its history

Only phantoms and random numbers are in them. The home lay in /opt/earlier, which the tests rewrite.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from ldseg.adaptive import SamplePlan
from serve.results import publish

import ldseg
from ldseg.bundle import load_bundle, save_bundle
from ldseg.config import Config
from ldseg.data.cohort import read_cohort
from ldseg.data.phantom import PhantomConfig, write_phantoms
from ldseg.data.volume import read_volume
from ldseg.model import LDSeg
from ldseg.orchestration.pyfunc import MeanProbability
from ldseg.posterior import Posterior, PosteriorSummary
from serve.store import JobStore, NewCohort, Work, sqlite_url

HERE, EARLIER, PLACE = Path(__file__).resolve().parent, Path(ldseg.__file__).parents[1], Path("/opt/earlier")
HOME = PLACE / "home"
MODEL = {
    "latent_channels": 1,
    "embedding_channels": 2,
    "autoencoder_widths": [8],
    "image_widths": [8],
    "denoiser_widths": [8],
    "denoiser_attention": False,
}
SPACE = f"""
MODEL = {MODEL}
BASE = {{
    "data": {{"spatial_dims": 2, "shape": [16, 16]}},
    "model": {{**MODEL, "downsampling": [2, 2], "patch": [2, 2]}},
    "optim": {{"batch_size": 4}},
    "sampler": {{"num_sample_steps": 3}},
}}
SPACE = {{
    "optim.learning_rate": ("loguniform", 1e-4, 1e-2),
    "size": ("options", {{"one": {{}}, "two": {{"loss.dice": ("uniform", 1.0, 2.0)}}}}),
}}
METRIC = ("val_nll", "min")
"""
GATES = "[floors]\ndice = 0.0\nworst_decile_dice = 0.0\nstructure_dice = 0.0\nsample_diversity = 0.0\n"


def run(program: str, *options: object, status: int = 0) -> None:
    """A program of the earlier version."""
    done = subprocess.run([sys.executable, str(EARLIER / "platform" / program), *map(str, options)], cwd=PLACE)
    assert done.returncode == status, (program, done.returncode)


def make_bundle() -> PosteriorSummary:
    """A 3D bundle with each part that a calibration can have, and its answer to one image."""
    folder, data = PLACE / "bundle", PLACE / "volumes"
    write_phantoms(data, PhantomConfig(cases=36, raters=1, shape=(16, 16, 16), fractions=(0.4, 0.1, 0.5)))
    cohort = read_cohort(str(data))
    config = Config.from_dict(
        {
            "data": {
                "spatial_dims": 3,
                "shape": [16, 16, 16],
                "label_values": [0, 1, 2, 3],
                "structures": list(cohort.structures),
            },
            "model": {**MODEL, "downsampling": [2, 2, 2], "patch": [2, 2, 2]},
            "sampler": {"num_sample_steps": 3},
        }
    )
    torch.manual_seed(0)
    model = LDSeg(config)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not float(parameter.detach().abs().max()):
            torch.nn.init.normal_(parameter, std=0.1)
    [*model.label_decoder.parameters()][-2].data *= 5  # it shall be sure of something
    split = {part: [case.name for case in cohort.split(part)] for part in ("train", "validation", "test")}
    save_bundle(folder, model, config, {"name": "earlier", "split": split}, dtype=torch.float16)
    run("calibrate.py", "--model", folder, "--data", data, "--split", "test", "--samples", 4, "--missed", 0.2)
    noise = np.random.default_rng(0).normal(size=(15, 17, 12)).astype(np.float32)
    affine = np.array([[0, -1.2, 0, 3], [0.9, 0, 0, -4], [0, 0, 1.5, 5], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(noise, affine), folder / "image.nii.gz")
    volume = read_volume(folder / "image.nii.gz", case="noise", spatial_dims=3)
    bundle = load_bundle(folder)
    summary = Posterior(bundle, precision="float32").segment(volume, samples=4, seed=0)
    np.savez_compressed(
        folder / "answer.npz", label=summary.label.astype(np.uint8), entropy=summary.predictive_entropy,
        cautious=summary.cautious,
    )  # fmt: skip
    (folder / "answer.json").write_text(json.dumps({**bundle.identity, "numbers": summary.numbers()}, indent=1))
    return summary


def make_jobs(summary: PosteriorSummary) -> None:
    """A job store in each state that a stopped service leaves."""
    like = read_volume(PLACE / "bundle" / "image.nii.gz", case="noise", spatial_dims=3)
    structures = load_bundle(PLACE / "bundle").config.data.structures
    result = publish(summary, like, structures, PLACE / "results" / "noise")
    store = JobStore(sqlite_url(PLACE / "jobs.db"))

    def end(work: Work | None, state: str, **told: object) -> None:
        assert work is not None and store.finish(work, "worker", state, **told)

    def add(*names: str, plan: SamplePlan, **told: object) -> str:
        cases = [(name, f"/data/{name}.nii.gz") for name in names]
        return store.add(NewCohort(owner="clinic", plan=plan, **told), cases)[0]

    fixed = SamplePlan.fixed(4)
    add("one", "two", plan=fixed, steps=3, seed=7, models=("models:/tiny@champion",), key="k", body_digest="sha256:b")
    end(store.claim("worker", 60), "done", result=result, model_digest=summary.model_digest)
    end(store.claim("worker", 60), "failed", error="two: the file is cut off; copy it again", reason="unreadable")
    gone = add("late", plan=fixed)
    store.cancel(gone)
    add("silent", "next", plan=SamplePlan(min=4, max=16, tolerance=0.02), priority=5)
    assert store.claim("worker", 0.01) is not None
    store.add(NewCohort(owner="ward", plan=fixed, upload=True), [("upload", "/data/upload.nii.gz")])
    store.close()


def search(name: str, *options: object) -> list[str]:
    """The command of a search of two trials on phantoms."""
    command = ["--data", PLACE / "phantoms", "--space", PLACE / "space.py", "--name", name, "--runs", HOME]
    return [str(part) for part in [*command, "--trials", 2, "--samples", 2, "--register", "tiny", "--quiet", *options]]


def make_home() -> None:
    """A search that ended and registered its best, a refusal, a promotion, and a search that is killed."""
    write_phantoms(
        PLACE / "phantoms", PhantomConfig(dims=2, cases=16, raters=2, shape=(16, 16), fractions=(0.5, 0.25, 0.25))
    )
    (PLACE / "space.py").write_text(SPACE)
    (PLACE / "gates.toml").write_text(GATES)
    run("tune.py", *search("ended", "--epochs", 2))
    run("promote.py", "tiny", 1, "--reason", "too early", "--runs", HOME, status=1)
    gates = ("--gates", PLACE / "gates.toml")
    run("promote.py", "tiny", "challenger", "--reason", "the first", *gates, "--runs", HOME)
    command = [sys.executable, str(EARLIER / "platform" / "tune.py"), *search("killed", "--epochs", 10, "--front")]
    process = subprocess.Popen(command, cwd=PLACE, start_new_session=True)
    history = HOME / "train" / "killed-0001" / "history.jsonl"
    while not history.exists() or len(history.read_text().splitlines()) < 2:
        assert process.poll() is None, "the search ended too early"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(5)  # its workers see that it is gone


def predict() -> None:
    """What the registered model says of two images of noise."""
    (folder,) = HOME.glob("artifacts/search/models/*/artifacts/data/*")
    images = np.random.default_rng(0).normal(size=(2, 1, 16, 16)).astype(np.float32)
    np.save(PLACE / "predicted.npy", MeanProbability(folder).predict(images))


def thin_home() -> None:
    """Leave out what can be made again, and what no resumed search reads."""
    shutil.rmtree(HOME / "cache", ignore_errors=True)
    for name in ("bundles", "evaluations"):
        shutil.rmtree(HOME / name, ignore_errors=True)
    for folder in [*HOME.glob("studies/*/tune-*"), *HOME.rglob("pictures")]:
        shutil.rmtree(folder)
    for report in HOME.rglob("report.html"):
        report.unlink()
    for run_folder in (HOME / "train").iterdir():
        kept = sorted(run_folder.glob("checkpoint_*"))
        for folder in kept[:-1] if run_folder.name == "killed-0001" else kept:
            shutil.rmtree(folder)


def pack(name: str, folder: Path, files: list[Path]) -> None:
    """Files as a small archive."""
    with zipfile.ZipFile(HERE / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(files):
            archive.write(file, file.relative_to(folder))
    print(name, (HERE / name).stat().st_size)


def files_in(*folders: Path) -> list[Path]:
    """All files under folders."""
    return [file for folder in folders for file in folder.rglob("*") if file.is_file()]


if __name__ == "__main__":
    PLACE.mkdir(parents=True)
    make_jobs(make_bundle())
    make_home()
    predict()
    thin_home()
    pack("bundle.zip", PLACE / "bundle", files_in(PLACE / "bundle"))
    pack("jobs.db.zip", PLACE, [file for file in PLACE.glob("jobs.db*") if not file.name.endswith("-shm")])
    pack("home.zip", PLACE, [*PLACE.glob("*.py"), *PLACE.glob("*.npy"), *files_in(HOME, PLACE / "phantoms")])
