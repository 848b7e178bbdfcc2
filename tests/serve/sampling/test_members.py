"""A model of several members on samplers and over HTTP: one model, drawn whole or spread, to the same bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import CHUNK, alone, case, ref, same
from faulting import Start, digests
from tiny import random_bundle, tiny_config

from ldseg.bundle import Bundle, load_bundle, save_members
from ldseg.data.cohort import Case
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.adaptive import Drawing
from ldseg.posterior.draws import Draws
from ldseg.posterior.plan import SamplePlan
from ldseg.results.segment import segment_here
from serve.sampling.messages import GridParts, Reply
from serve.sampling.models import ModelError, ModelRef, Models
from serve.sampling.sampler import Sampler

MEMBERS = 3


def _whole(folder: Path, dims: int = 3) -> Bundle:
    plain = [random_bundle(folder / f"fold-{k}", tiny_config(dims), seed=k).path for k in range(MEMBERS)]
    save_members(folder / "whole", plain, {"name": "whole", "split": {"train": [], "validation": [], "test": []}})
    return load_bundle(folder / "whole")


@pytest.mark.parametrize("dims", [2, 3])
def test_samplers_draw_a_model_of_members_whole_and_spread_to_the_bits_of_one_process(
    tmp_path: Path, dims: int
) -> None:
    bundle = _whole(tmp_path, dims)
    grid, plan = case(bundle), SamplePlan.fixed(10)
    parts, model = GridParts.of(grid), ref(bundle)

    async def scenario() -> tuple[Reply, PosteriorAccumulator]:
        samplers = [Sampler("cpu", CHUNK, 1, 2) for _ in range(2)]
        whole = await samplers[0].segment_case(parts, 7, plan, None, [model])
        (embedding,) = (await samplers[1].encode(parts, [model])).embeddings
        drawing = Drawing(plan, CHUNK)
        for number, (_, indices) in enumerate(drawing.chunks()):
            reply = await samplers[number % 2].sample(parts, embedding, 7, indices, None, model)
            drawing.take(PosteriorAccumulator.from_arrays(reply.totals[0]))
        return whole, drawing.totals[0]

    whole, spread = asyncio.run(scenario())
    expected = alone([bundle], grid, plan, seed=7)
    assert same([PosteriorAccumulator.from_arrays(whole.totals[0])], expected) and same([spread], expected)
    assert whole.embeddings[0].shape[0] == MEMBERS and sorted(spread.by_member) == [0, 1, 2]


def test_a_member_whose_numbers_are_not_finite_is_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    from ldseg.bundle import save_bundle

    _whole(tmp_path)
    broken = load_bundle(tmp_path / "fold-2")
    with torch.no_grad():
        next(broken.model.image_encoder.parameters()).fill_(np.nan)
    save_bundle(broken.path, broken.model, broken.config, broken.card)
    digest = save_members(tmp_path / "whole", [tmp_path / f"fold-{k}" for k in range(MEMBERS)], {})
    with pytest.raises(ModelError, match="whole: the model gives numbers that are not finite"):
        Models("cpu", CHUNK, held=1).get(ModelRef(str(tmp_path / "whole"), digest))


def test_a_service_gives_the_maps_of_a_model_of_members_as_of_any_other(
    start: Start, images: dict[str, str], tmp_path: Path
) -> None:
    bundle = _whole(tmp_path)
    web = start("web", model=str(bundle.path))
    described = web.http.get("/v1/model").json()
    assert described["digest"] == bundle.digest
    assert described["card"]["members"] == [member.digest for member in bundle.members]
    posted = {name: images[name] for name in ("c0", "c1")}
    cohort = web.post(posted, samples=6, seed=3)
    assert web.finish(cohort)["counts"]["done"] == 2
    found = digests(web, cohort, posted)
    cases = [Case(name=name, image=Path(image)) for name, image in posted.items()]
    table = segment_here(bundle, cases, Draws(6, seed=3), tmp_path / "here", lambda number, text: None)
    assert set(table.column("models").to_pylist()) == {MEMBERS}
    for name in posted:
        document = web.http.get(f"/v1/cohorts/{cohort}/cases/{name}").json()
        assert document["model_digest"] == bundle.digest and document["numbers"]["models"] == MEMBERS
        assert document["numbers"]["mean_total"] == pytest.approx(
            document["numbers"]["mean_epistemic"] + document["numbers"]["mean_aleatoric"], rel=1e-5
        )
        assert {"total", "epistemic", "aleatoric", "entropy", "variance"} <= found[name].keys()
        for path in (tmp_path / "here" / "maps" / name).glob("*.nii.gz"):
            key = next(entry for entry in document["files"].values() if entry["name"] == path.name)
            assert web.http.get(key["href"]).content == path.read_bytes()
