"""One service with two samplers for the whole session; models and images small enough for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from faulting import images, registry, start  # noqa: F401  (fixtures)
from service import TOKEN, Service, write_image
from stores import postgres, store, url  # noqa: F401  (fixtures)
from tiny import random_bundle, some_calibration, tiny_config
from web import Web

from ldseg.bundle import Bundle, load_bundle
from ldseg.calibration.familiarity import fit_familiarity
from ldseg.calibration.file import save_calibration
from serve.tokens import hash_token


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A sampler in this process sets how many threads torch has; the tests after it have as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Calibrated, with what is familiar to it."""
    bare = random_bundle(tmp_path_factory.mktemp("model") / "bundle", tiny_config())
    features = np.random.default_rng(0).uniform(1, 2, size=(20, 2 * bare.config.model.embedding_channels))
    known = fit_familiarity(features[:15], features[15:])
    save_calibration(bare.path, dataclasses.replace(some_calibration(bare), familiarity=known))
    return load_bundle(bare.path)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, one cut short, one with a NaN; and an image outside of what the service may read."""
    folder = tmp_path_factory.mktemp("images") / "data"
    for seed in range(3):
        write_image(folder / f"case_{seed}.nii.gz", seed)
    whole = write_image(folder / "broken" / "cut.nii", 3)
    whole.write_bytes(whole.read_bytes()[:3000])
    write_image(folder.parent / "outside.nii.gz", 4)
    (folder / "link.nii.gz").symlink_to(folder.parent / "outside.nii.gz")
    return folder


@pytest.fixture(scope="session")
def service(bundle: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = "--max-cohorts", "3", "--max-upload-mb", "1", "--max-steps", "1000"
    started = Service(bundle.path, data, tmp_path_factory.mktemp("service") / "runs", *limits)
    try:
        yield started.wait_ready()
    finally:
        status, _ = started.stop()
        assert status == 0, started.log.read_text()[-2000:]


TOKENS = {
    "default": {"sha256": hash_token(TOKEN), "max_priority": 9, "operator": True},
    "other": {"sha256": hash_token("another-token"), "max_unfinished_cases": 3},
}


@pytest.fixture(scope="session")
def web(bundle: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The interface without a cluster, with two tokens."""
    home = tmp_path_factory.mktemp("web")
    limits = {"max_cohorts": 1000, "max_steps": 1000}
    started = Web(bundle.path, home, token=TOKEN, allow_roots=[str(data)], tokens=TOKENS, **limits)
    try:
        yield started.wait_ready()
    finally:
        started.stop()


@pytest.fixture(scope="session")
def done(web: Web, data: Path) -> str:
    """A cohort of two finished cases and a broken one."""
    cohort = web.post({"a": "case_0.nii.gz", "b ö": "case_1.nii.gz", "cut": str(data / "broken" / "cut.nii")})
    assert web.finish(cohort)["counts"]["done"] == 2
    return cohort
