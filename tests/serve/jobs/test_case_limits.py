"""What a case may take: of the dearest model of an ensemble, and of an image before it is read."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from faulting import Start
from registered import register
from service import write_image
from tiny import tiny_config

from ldseg.bundle import Bundle
from ldseg.memory.cost import most_voxels, needed_bytes
from ldseg.orchestration.tracking import mlflow_client
from ldseg.posterior.sampling import Posterior


def needed(bundle: Bundle, samples: int) -> int:
    posterior = Posterior(bundle, chunk_size=4)
    sizes = {"voxels": 13 * 15 * 11, "grid_voxels": 16**3, "samples": samples}
    return needed_bytes(bundle.config.data, posterior.bytes_per_voxel, **sizes)


def test_an_ensemble_takes_what_its_dearest_model_takes_and_a_file_is_refused_by_its_header(
    start: Start, images: dict[str, str], tmp_path: Path
) -> None:
    tracker, config = mlflow_client.connect(tmp_path / "registry"), tiny_config()
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, autoencoder_widths=(64, 64)))
    (cheap, _), (dear, _) = (
        register(tracker, tmp_path, "w", seed, None, config=chosen) for seed, chosen in enumerate((config, wide))
    )
    least, most = needed(cheap, samples=4), needed(dear, samples=4)
    assert least < 0.9 * most
    roots = [str(Path(images["c0"]).parent), str(tmp_path)]
    limit = (least + most) / 2
    web = start(
        "web", model="models:/w/1", home=str(tracker.home), allow_roots=roots, max_case_gb=limit / 2**30, chunk_size=4
    )
    names = [f"models:/w/{version}" for version in (1, 2)]

    def outcome(image: str, models: list[str]) -> str:
        posted = web.post({"a": image}, samples=2, models=models)
        web.finish(posted)
        return str(web.http.get(f"/v1/cohorts/{posted}/cases/a").json()["error"])

    assert outcome(images["c0"], names[:1]) == "None"
    for models in (names, names[::-1]):
        assert "working grid of 16x16x16 voxels takes" in outcome(images["c0"], models)
    huge = write_image(tmp_path / "sparse" / "huge.nii", shape=(2, 2, 2))
    header = nib.load(huge).header
    header.set_data_shape((1000, 1000, 250))
    header.set_data_offset(352)
    with huge.open("r+b") as file:
        file.write(bytes(header.binaryblock))
    os.truncate(huge, 352 + 4 * 250_000_000)  # with nothing on the disk
    web.reset_peak()
    before = web.rss()
    said = outcome(str(huge), names[:1])
    assert said.startswith("a: huge.nii claims 250000000 voxels"), said
    assert web.peak() - before < 2**28


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_of_the_most_voxels_takes_the_limit_without_any_grid(dims: int) -> None:
    data = tiny_config(dims).data
    most = most_voxels(data, 2**30)
    taken = needed_bytes(data, 0.0, voxels=most, grid_voxels=0, samples=1)
    np.testing.assert_allclose(taken, 2**30, rtol=1e-5)  # a part of a byte for each voxel is cut off
