"""A sampler without Ray: models by digest, one thing at a time, memory that runs out."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import CHUNK, TOLERANCE, alone, case, ref, same
from service import ROOT, environment
from tiny import random_bundle, tiny_config

from ldseg.bundle import Bundle
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.chunks import CaseTooLarge, draw_chunk
from ldseg.posterior.plan import SamplePlan
from ldseg.posterior.sampling import Posterior
from serve.sampling.messages import GridParts, Reply
from serve.sampling.models import ModelError, ModelRef, Models
from serve.sampling.sampler import Sampler


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[2, 3])
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("models")
    return [random_bundle(folder / f"model_{seed}", tiny_config(request.param), seed) for seed in range(4)]


def accumulators(reply: Reply) -> list[PosteriorAccumulator]:
    return [PosteriorAccumulator.from_arrays(arrays) for arrays in reply.totals]


def test_a_whole_case_equals_one_drawn_alone_to_the_bit(bundles: list[Bundle]) -> None:
    grid, tolerance = case(bundles[0]), TOLERANCE[bundles[0].config.data.spatial_dims]
    plan = SamplePlan(min=3, max=40, tolerance=tolerance)
    expected = alone(bundles[:2], grid, plan, seed=7)
    assert CHUNK < expected[0].num_samples < 40, "else this shows nothing"

    async def scenario() -> Reply:
        sampler = Sampler("cpu", CHUNK, 1, 2)
        return await sampler.segment_case(GridParts.of(grid), 7, plan, None, [ref(b) for b in bundles[:2]])

    reply = asyncio.run(scenario())
    assert same(accumulators(reply), expected)
    assert reply.precision == Posterior(bundles[0]).precision.name
    assert reply.errors is not None and max(error.largest for error in reply.errors) <= tolerance
    assert reply.seconds["denoise"] > 0 and reply.seconds["decode"] > 0


def test_calls_never_compute_side_by_side_and_a_cancelled_one_ends_with_its_chunk(bundles: list[Bundle]) -> None:
    grid, spans = case(bundles[0]), []

    class Watched(Sampler):
        async def _work(self, function: Any) -> Any:
            def timed() -> Any:
                start = time.perf_counter()
                try:
                    return function()
                finally:
                    spans.append((start, time.perf_counter()))

            return await super()._work(timed)

    async def scenario() -> Reply:
        sampler, parts, model = Watched("cpu", CHUNK, 1, 2), GridParts.of(grid), ref(bundles[0])
        await sampler.load([model])
        long = asyncio.create_task(sampler.segment_case(parts, 0, SamplePlan.fixed(4000), 300, [model]))
        while len(spans) < 4:
            await asyncio.sleep(0.01)
        following = asyncio.create_task(sampler.segment_case(parts, 0, SamplePlan.fixed(4), 3, [model]))
        await asyncio.sleep(0.02)
        long.cancel()
        before = len(spans)
        await asyncio.wait([long])
        assert long.cancelled()
        reply = await following
        # the chunk that was under way, of a thousand; the second call's look for its model, encode, a chunk, its sum
        assert 3 <= len(spans) - before <= 1 + 4
        return reply

    reply = asyncio.run(scenario())
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert same(accumulators(reply), alone(bundles[:1], grid, SamplePlan.fixed(4), num_steps=3))


def test_models_are_loaded_once_and_the_least_used_is_dropped(bundles: list[Bundle]) -> None:
    a, b, c, _ = (ref(bundle) for bundle in bundles)
    models = Models("cpu", CHUNK, held=2)
    first = models.get(a)
    models.get(b)
    assert models.get(a) is first
    models.get(c)
    assert a in models and c in models and b not in models
    assert models.get(b).bundle.digest == b.digest


def test_a_damaged_model_fails_only_its_calls_and_is_good_again_when_mended(
    bundles: list[Bundle], tmp_path: Path
) -> None:
    grid, broken = case(bundles[0]), tmp_path / "broken"
    shutil.copytree(bundles[1].path, broken)
    weights = broken / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bad = ModelRef(str(broken), bundles[1].digest)

    async def scenario() -> None:
        sampler, parts, plan = Sampler("cpu", CHUNK, 1, 2), GridParts.of(grid), SamplePlan.fixed(4)
        for model, word in (
            (bad, "don't match the digest"),
            (ModelRef(str(tmp_path / "none"), bad.digest), "no model bundle"),
            (ModelRef(str(bundles[0].path), bad.digest), f"holds the model {bundles[0].digest}"),
        ):
            with pytest.raises(ModelError, match=word):
                await sampler.segment_case(parts, 0, plan, None, [ref(bundles[0]), model])
        reply = await sampler.segment_case(parts, 0, plan, None, [ref(bundles[0])])
        assert same(accumulators(reply), alone(bundles[:1], grid, plan))
        weights.write_bytes(content)
        reply = await sampler.segment_case(parts, 0, plan, None, [bad])
        assert same(accumulators(reply), alone(bundles[1:2], grid, plan))

    asyncio.run(scenario())


def test_a_model_of_numbers_that_are_not_finite_is_refused(bundles: list[Bundle], tmp_path: Path) -> None:
    config = bundles[0].config
    torch.manual_seed(0)
    from ldseg.bundle import save_bundle
    from ldseg.model import LDSeg

    model = LDSeg(config)
    next(model.label_decoder.parameters()).data.fill_(torch.nan)
    digest = save_bundle(tmp_path / "nan", model, config, {"name": "nan"})
    with pytest.raises(ModelError, match="not finite"):
        Models("cpu", CHUNK, held=1).get(ModelRef(str(tmp_path / "nan"), digest))


class Short(Posterior):
    """Has no memory for a decoded sample while more than one waits in the sums, or for any."""

    refuses = 1

    def accumulate(self, *args: Any, **kwargs: Any) -> PosteriorAccumulator:
        super().accumulate(*args, **kwargs)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def decode(self, *args: Any) -> torch.Tensor:
        if self.refuses > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return super().decode(*args)


def test_a_chunk_drawn_one_by_one_where_memory_ran_out_has_the_same_bytes(bundles: list[Bundle]) -> None:
    grid, asked = case(bundles[0]), []
    posterior = Short(bundles[0], chunk_size=CHUNK)
    draws = {"seed": 0, "indices": range(CHUNK), "num_steps": None, "make_room": lambda: asked.append(1)}
    part, _ = draw_chunk(posterior, grid, posterior.encode(grid), **draws)
    assert same([part], [Posterior(bundles[0]).accumulate(grid, posterior.encode(grid), seed=0, indices=range(CHUNK))])
    assert len(asked) == 1
    posterior.refuses = 2
    with pytest.raises(CaseTooLarge, match="case_0: the memory does not suffice for its grid"):
        draw_chunk(posterior, grid, posterior.encode(grid), **draws)


def test_other_errors_are_not_taken_for_lack_of_memory(bundles: list[Bundle]) -> None:
    grid, posterior = case(bundles[0]), Posterior(bundles[0])
    draws = {"seed": 0, "indices": range(CHUNK), "num_steps": None, "make_room": lambda: None}
    with pytest.raises(RuntimeError, match="size"):
        draw_chunk(posterior, grid, posterior.encode(grid)[..., :2], **draws)


PROGRAM = """
import asyncio, hashlib, json, resource, sys
sys.path[:0] = ["tests/helpers", "tests/helpers/service"]
from drawn import CHUNK, case, ref
from ldseg.posterior.plan import SamplePlan
from ldseg.bundle import load_bundle
from pathlib import Path
from ldseg.posterior.chunks import CaseTooLarge
from serve.sampling.messages import GridParts; from serve.sampling.sampler import Sampler

bundle = load_bundle(Path(sys.argv[1]))
small, large = (GridParts.of(case(bundle, shape=(size,) * 3)) for size in (13, 144))

async def main():
    sampler, said = Sampler("cpu", CHUNK, 1, 1), []
    async def draw(parts):
        reply = await sampler.segment_case(parts, 0, SamplePlan.fixed(8), None, [ref(bundle)])
        return hashlib.sha256(b"".join(a.tobytes() for a in reply.totals[0].values())).hexdigest()
    said.append(await draw(small))
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + 150 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        said.append(await draw(large))
    except CaseTooLarge as error:
        said.append(str(error))
    said.append(await draw(small))
    print(json.dumps(said))

asyncio.run(main())
"""


def test_a_case_that_exceeds_the_machines_memory_fails_alone(tmp_path: Path) -> None:
    """In a process that may have 150 MB more than it has after a small case."""
    bundle = random_bundle(tmp_path / "model", tiny_config(3))
    command = [sys.executable, "-c", PROGRAM, str(bundle.path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    before, large, after = json.loads(done.stdout.splitlines()[-1])
    assert large.startswith("case_0: the memory does not suffice for its grid of 144x144x144 voxels")
    assert before == after
