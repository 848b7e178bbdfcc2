"""A bundle of several members is one model: their samples in turn, one digest, the uncertainty in parts."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from posteriors import DIMS, _volume
from tiny import random_bundle, some_calibration, tiny_config

from ldseg.bundle import BundleError, load_bundle, save_members
from ldseg.calibration.file import save_calibration
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.chunks import draw_chunk
from ldseg.posterior.draws import Draws, partition
from ldseg.posterior.ensemble import decompose
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.summary import write_summary


def _members(folder, dims=3, count=3):
    """Plain bundles, and the one that is made of them."""
    plain = [random_bundle(folder / f"fold-{k}", tiny_config(dims), seed=k) for k in range(count)]
    save_members(folder / "whole", [bundle.path for bundle in plain], {"name": "whole"})
    return plain, load_bundle(folder / "whole")


def _fails_once(call):
    left = [MemoryError()]

    def attempt(*args, **options):
        if left:
            raise left.pop()
        return call(*args, **options)

    return attempt


def _same(a, b):
    one, other = a.numbers(), b.numbers()
    for differs in ("seconds", "model_digest"):
        assert one.pop(differs) != other.pop(differs)
    assert one == other
    for name in ("label", "mean_probability", "predictive_entropy", "sample_variance", "samples", "cautious"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name, values in a.volumes.items():
        np.testing.assert_array_equal(values, b.volumes[name])


@DIMS
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_bundle_of_one_member_gives_the_bits_of_the_plain_one(tmp_path, dims, calibrated):
    (plain,), whole = _members(tmp_path, dims, count=1)
    assert whole.digest != plain.digest
    if calibrated:
        for bundle in (plain, whole):
            save_calibration(bundle.path, some_calibration(bundle, unit="ml" if dims == 3 else "mm2"))
        plain, whole = load_bundle(plain.path), load_bundle(whole.path)
    volume = _volume(tmp_path, dims)
    one, other = (
        posterior.summarise(posterior.draw(volume, Draws(3)), keep_samples=2)
        for posterior in (Posterior(plain), Posterior(whole))
    )
    _same(one, other)
    assert other.parts == {} and "models" not in other.numbers()


@DIMS
def test_a_sample_is_that_of_its_member_at_its_index(tmp_path, dims):
    plain, whole = _members(tmp_path, dims)
    volume = _volume(tmp_path, dims)
    posterior = Posterior(whole, precision="float32")
    drawn = posterior.draw(volume, Draws(7, seed=5))
    assert drawn.embedding.shape[0] == 3 and posterior.encoder_calls == 3
    for k, bundle in enumerate(plain):
        alone = Posterior(bundle, precision="float32").draw(volume, Draws(7, seed=5)).total
        own = range(k, 7, 3)
        assert all(np.array_equal(alone.masks[index], drawn.total.masks[index]) for index in own)


@DIMS
def test_total_is_epistemic_and_aleatoric_as_of_an_ensemble_of_the_members(tmp_path, dims):
    plain, whole = _members(tmp_path, dims)
    volume, posterior = _volume(tmp_path, dims), Posterior(whole, precision="float32")
    summary = posterior.summarise(drawn := posterior.draw(volume, Draws(6)))
    grid = drawn.grid
    models = []
    for k, bundle in enumerate(plain):
        alone = Posterior(bundle, precision="float32")
        models.append(alone.accumulate(grid, alone.encode(grid), seed=0, indices=[k, k + 3]))
    expected = decompose(models)
    for name in ("total", "epistemic", "aleatoric"):
        native = grid.to_native(getattr(expected, name)[None].float())[0]
        np.testing.assert_allclose(summary.parts[name], native, atol=2e-5)
    assert np.array_equal(summary.parts["total"], summary.predictive_entropy)
    assert summary.parts["epistemic"].max() > 1e-3 and summary.parts["epistemic"].min() >= 0
    row = summary.numbers()
    assert row["models"] == 3 and row["mean_total"] == pytest.approx(row["mean_entropy"], rel=1e-6)
    assert row["mean_total"] == pytest.approx(row["mean_epistemic"] + row["mean_aleatoric"], rel=1e-5)
    assert {f"mean_{s}_{part}" for s in summary.volumes for part in summary.parts} <= row.keys()


def test_the_maps_of_the_parts_add_up_in_the_files(tmp_path):
    _, whole = _members(tmp_path)
    volume = _volume(tmp_path, 3)
    paths = write_summary(Posterior(whole).segment(volume, samples=3), tmp_path / "out", volume, ["organ", "nodule"])
    total, epistemic, aleatoric = (nib.load(paths[name]).get_fdata() for name in ("total", "epistemic", "aleatoric"))
    assert np.abs(total - epistemic - aleatoric).max() <= 1.5 * np.log(3) / 65535 + 1e-9
    assert json.loads(paths["sidecar"].read_text())["Members"] == 3


def test_pieces_that_several_machines_draw_add_up_to_the_same_bits(tmp_path, monkeypatch):
    _, whole = _members(tmp_path)
    volume, posterior = _volume(tmp_path, 3), Posterior(whole, chunk_size=4, precision="float32")
    drawn = posterior.draw(volume, Draws(10))
    total = None
    for number, indices in enumerate(partition(10, 4)):
        if number == 1:  # whose memory runs out: its samples are decoded one by one
            monkeypatch.setattr(posterior, "accumulate", _fails_once(posterior.accumulate))
        part, _ = draw_chunk(
            posterior, drawn.grid, drawn.embedding, seed=0, indices=indices, num_steps=None, make_room=lambda: None
        )
        part = PosteriorAccumulator.from_arrays(part.to_arrays())
        total = part if total is None else total.include(part)
    assert torch.equal(total.probability_sum, drawn.total.probability_sum)
    assert sorted(total.by_member) == [0, 1, 2]
    for member, parts in drawn.total.by_member.items():
        torch.testing.assert_close(total.by_member[member], parts, rtol=1e-6, atol=1e-6)
    a, b = (posterior.summarise(dataclasses.replace(drawn, total=t)).numbers() for t in (drawn.total, total))
    assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_the_temperature_is_each_members_own_mean_at_it(tmp_path):
    _, whole = _members(tmp_path)
    save_calibration(whole.path, some_calibration(whole, temperature=2.0, samples=6))
    volume = _volume(tmp_path, 3)
    before, after = (Posterior(bundle).segment(volume, samples=6) for bundle in (whole, load_bundle(whole.path)))
    np.testing.assert_array_equal(before.label, after.label)
    assert after.predictive_entropy.mean() > before.predictive_entropy.mean()
    np.testing.assert_allclose(after.parts["total"], after.parts["epistemic"] + after.parts["aleatoric"], atol=1e-6)


def test_more_memory_is_told_for_more_members(tmp_path):
    volume = _volume(tmp_path, 3)
    plain, whole = _members(tmp_path)
    assert Posterior(whole).bytes_per_voxel > Posterior(plain[0]).bytes_per_voxel
    Posterior(whole).check_memory(volume, samples=6)


def test_members_of_other_configurations_or_members_of_members_are_refused(tmp_path):
    plain, whole = _members(tmp_path, 2)
    other = random_bundle(tmp_path / "other", tiny_config(2).with_overrides({"sampler.num_sample_steps": 2}))
    with pytest.raises(BundleError, match=r"other is configured otherwise than .*fold-0"):
        save_members(tmp_path / "x", [plain[0].path, other.path], {})
    with pytest.raises(BundleError, match="whole has members itself"):
        save_members(tmp_path / "x", [whole.path], {})
    with pytest.raises(BundleError, match="needs one"):
        save_members(tmp_path / "x", [], {})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("damage", ["weights", "exchanged", "gone", "config"])
def test_a_bundle_whose_members_were_changed_is_refused(tmp_path, damage):
    _, whole = _members(tmp_path, 2)
    members = whole.path / "members"
    if damage == "weights":
        path = members / "1" / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif damage == "exchanged":
        (members / "0").rename(members / "9")
        (members / "1").rename(members / "0")
        (members / "9").rename(members / "1")
    elif damage == "gone":
        (members / "2" / "weights.safetensors").unlink()
    else:
        values = json.loads((whole.path / "config.json").read_text())
        values["sampler"]["num_sample_steps"] = 1
        (whole.path / "config.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"the files don't match the digest|is no model bundle"):
        load_bundle(whole.path)


def test_the_digest_is_that_of_the_members_in_their_order_and_a_new_bundle_takes_the_place_of_the_old(tmp_path):
    plain, whole = _members(tmp_path, 2)
    again = save_members(tmp_path / "again", [b.path for b in plain], {"name": "another card"})
    assert again == whole.digest and load_bundle(whole.path).card["members"] == [b.digest for b in plain]
    turned = save_members(whole.path, [b.path for b in plain[::-1]], {})
    assert turned != whole.digest and load_bundle(whole.path).digest == turned
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "fold-0", "fold-1", "fold-2", "whole"]
