"""Training items: reproducible draws, all raters, and a cache that processes share."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ldseg.config import DataConfig
from ldseg.data.cohort import Case, CohortError
from ldseg.data.dataset import ARRAYS, TrainingSet, cache_key, load_prepared

DATA = DataConfig(shape=(16, 16, 8), label_values=(0, 1, 2), structures=("a", "b"), augment=False)
MULTIPLE = (8, 8, 8)


def write_cases(root: Path, number: int = 3, shape: tuple[int, ...] = (12, 10, 7), raters: int = 2) -> list[Case]:
    generator, cases = np.random.default_rng(7), []
    for index in range(number):
        files = [root / f"{index}.nii.gz", *(root / f"{index}_{rater}.nii.gz" for rater in range(raters))]
        for file in files:
            values = generator.normal(size=shape).astype(np.float32)
            nib.save(nib.Nifti1Image(values if file == files[0] else (values > 0.5).astype(np.uint8), np.eye(4)), file)
        cases.append(Case(name=f"case{index}", image=files[0], labels=tuple(files[1:]), split="train"))
    return cases


def test_items_have_the_shape_and_one_of_the_raters(tmp_path):
    items = TrainingSet(write_cases(tmp_path), DATA, MULTIPLE)
    seen = set()
    for epoch in range(12):
        items.set_epoch(epoch)
        item = items[1]
        assert item["image"].shape == (1, 16, 16, 8) and item["image"].dtype == torch.float32
        assert item["label"].shape == (16, 16, 8) and item["label"].dtype == torch.int64 and item["case"] == "case1"
        matches = [bool((item["label"].numpy() == rater).all()) for rater in items.prepared[1].labels]
        assert sum(matches) == 1
        seen.add(matches.index(True))
    assert seen == {0, 1}


@pytest.mark.parametrize("dims", [2, 3])
def test_draws_depend_on_seed_epoch_and_index_alone(tmp_path, dims):
    shape = (12, 10, 7)[:dims]
    cases = write_cases(tmp_path, shape=shape)
    data = replace(DATA, spatial_dims=dims, shape=DATA.shape[:dims], augment=True, flip_axes=(0, 1))
    first, again, other = (TrainingSet(cases, data, MULTIPLE[:dims], seed=seed) for seed in (1, 1, 2))
    first.set_epoch(3)
    again.set_epoch(3)
    other.set_epoch(3)
    forwards = [first[index] for index in range(3)]
    backwards = [again[index] for index in (2, 1, 0)][::-1]
    for one, two in zip(forwards, backwards, strict=True):
        assert torch.equal(one["image"], two["image"]) and torch.equal(one["label"], two["label"])
    assert not torch.equal(forwards[0]["image"], other[0]["image"])
    first.set_epoch(4)
    assert not torch.equal(forwards[0]["image"], first[0]["image"])


def test_workers_that_outlive_an_epoch_follow_set_epoch(tmp_path):
    data = replace(DATA, augment=True)
    items = TrainingSet(write_cases(tmp_path), data, MULTIPLE)
    loader = DataLoader(items, batch_size=3, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    drawn = []
    for epoch in range(2):
        items.set_epoch(epoch)
        drawn.append(next(iter(loader))["image"])
        expected = torch.stack([items[index]["image"] for index in range(3)])
        assert torch.equal(drawn[-1], expected)
    assert not torch.equal(*drawn)


def test_larger_cases_are_cropped_for_training_and_whole_for_validation(tmp_path):
    cases = write_cases(tmp_path, shape=(30, 21, 7))
    train, validation = (TrainingSet(cases, DATA, MULTIPLE, None, training) for training in (True, False))
    whole = validation[0]
    assert whole["image"].shape == (1, 32, 24, 8) and whole["labels"].shape == (2, 32, 24, 8)
    assert torch.equal(whole["label"], whole["labels"][0]) and int(whole["inside"].sum()) == 30 * 21 * 7
    starts = set()
    for epoch in range(6):
        train.set_epoch(epoch)
        crop = train[0]["image"]
        assert crop.shape == (1, 16, 16, 8)
        corners = [(i, j) for i in range(17) for j in range(9)]
        found = [(i, j) for i, j in corners if torch.equal(whole["image"][:, i : i + 16, j : j + 16], crop)]
        assert len(found) == 1
        starts.add(found[0])
    assert len(starts) > 2


def test_a_crops_place_does_not_tell_what_its_rater_drew(tmp_path):
    image, found = np.zeros((64, 64), dtype=np.float32), np.zeros((64, 64), dtype=np.uint8)
    image[46:54, 6:14], found[46:54, 6:14] = 1, 1
    files = [tmp_path / f"{name}.nii.gz" for name in ("image", "found", "missed")]
    for file, values in zip(files, (image, found, np.zeros_like(found)), strict=True):
        nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    data = replace(DATA, spatial_dims=2, shape=(16, 16), label_values=(0, 1), structures=("nodule",))
    items = TrainingSet([Case(name="one", image=files[0], labels=tuple(files[1:]), split="train")], data, (8, 8))
    labelled = []
    for epoch in range(300):
        items.set_epoch(epoch)
        item = items[0]
        if item["image"].max() > item["image"].min():  # the nodule is in sight
            labelled.append(bool(item["label"].any()))
    assert len(labelled) > 150 and 0.4 < np.mean(labelled) < 0.6  # as often as one of the two raters saw it


def test_cache_gives_the_same_items_and_survives_damage(tmp_path):
    cases = write_cases(tmp_path)
    cache = tmp_path / "cache"
    plain = TrainingSet(cases, DATA, MULTIPLE)[2]
    for _ in range(2):
        item = TrainingSet(cases, DATA, MULTIPLE, cache)[2]
        assert torch.equal(item["image"], plain["image"]) and torch.equal(item["label"], plain["label"])
    entries = sorted(cache.iterdir())
    assert len(entries) == 3
    entries[0].write_bytes(b"")
    entries[1].write_bytes(entries[1].read_bytes()[:1000])
    damaged = bytearray(entries[2].read_bytes())
    damaged[len(damaged) // 2] ^= 255
    entries[2].write_bytes(damaged)
    rebuilt = TrainingSet(cases, DATA, MULTIPLE, cache)
    assert torch.equal(rebuilt[2]["image"], plain["image"])
    assert not rebuilt.problems and sorted(cache.iterdir()) == entries
    assert all(len(entry.read_bytes()) == len(entries[0].read_bytes()) for entry in entries)


def test_cache_is_keyed_by_parameters_and_file_content(tmp_path):
    case = write_cases(tmp_path, 1)[0]
    key = cache_key(case, DATA, MULTIPLE)
    for other in (
        replace(DATA, shape=(24, 16, 8)), replace(DATA, spacing_mm=(2.0, 2.0, 2.0)), replace(DATA, fit="stretch"),
        replace(DATA, foreground_only=True), replace(DATA, label_values=(0, 2, 1)),
    ):  # fmt: skip
        assert cache_key(case, other, MULTIPLE) != key
    assert cache_key(case, DATA, (4, 4, 4)) != key
    assert cache_key(replace(case, labels=case.labels[:1]), DATA, MULTIPLE) != key
    # augmentation works on what is cached, and does not change it
    assert cache_key(case, replace(DATA, augment=True, flip_axes=(0,)), MULTIPLE) == key
    before = load_prepared(case, DATA, MULTIPLE, tmp_path / "cache")
    nib.save(nib.Nifti1Image(np.ones((12, 10, 7), np.uint8), np.eye(4)), case.labels[0])
    after = load_prepared(case, DATA, MULTIPLE, tmp_path / "cache")
    assert before.labels[0].sum() < after.labels[0].sum() == 12 * 10 * 7


def test_cached_cases_take_no_memory_of_their_own(tmp_path):
    cases = write_cases(tmp_path, 4, shape=(64, 64, 32), raters=1)
    TrainingSet(cases, DATA, MULTIPLE, tmp_path / "cache")
    mapped, in_memory = (TrainingSet(cases, DATA, MULTIPLE, cache) for cache in (tmp_path / "cache", None))
    for kept, copied in zip(mapped.prepared, in_memory.prepared, strict=True):
        for name in ARRAYS:
            file, anonymous = mapping_of(getattr(kept, name))
            assert file.startswith(str(tmp_path / "cache")) and anonymous == 0
            file, anonymous = mapping_of(getattr(copied, name))  # the same without a cache, to see that this tells
            assert not file.startswith("/") and anonymous > 0


def mapping_of(array: np.ndarray) -> tuple[str, int]:
    """The file that stands behind an array's memory ("" for none), and how many bytes there no file stands behind."""
    inside, file = False, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside, file = low <= array.ctypes.data < high, " ".join(rest[4:])
        elif inside and first == "Anonymous:":
            return file, 1024 * int(rest[0])
    raise AssertionError("no mapping holds the array")


def prepare_all(arguments: tuple[list[Case], Path]) -> list[float]:
    cases, cache = arguments
    return [float((load_prepared(case, DATA, MULTIPLE, cache).image ** 3).sum()) for _ in range(5) for case in cases]


def test_two_processes_share_a_cache(tmp_path):
    cases = write_cases(tmp_path, 8, raters=1)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(prepare_all, [(cases, tmp_path / "cache")] * 2, chunksize=1)
    assert first == second == prepare_all((cases, tmp_path / "cache")) and len(set(first)) == 8
    assert sorted({entry.suffix for entry in (tmp_path / "cache").iterdir()}) == [".safetensors"]
    assert len(list((tmp_path / "cache").iterdir())) == 8


def test_broken_cases_are_left_out_and_told(tmp_path):
    cases = write_cases(tmp_path, 5)
    cases[0].labels[1].unlink()
    cases[1].image.write_bytes(cases[1].image.read_bytes()[:200])
    nib.save(nib.Nifti1Image(np.full((12, 10, 7), 9, np.uint8), np.eye(4)), cases[2].labels[0])
    cases[3] = replace(cases[3], labels=())
    items = TrainingSet(cases, DATA, MULTIPLE, tmp_path / "cache")
    assert len(items) == 1 and items[0]["case"] == "case4"
    assert [problem.case for problem in items.problems] == ["case0", "case1", "case2", "case3"]
    with pytest.raises(CohortError, match="first of 4 problems: case0: "):
        TrainingSet(cases[:4], DATA, MULTIPLE)
    with pytest.raises(CohortError, match="give labelled cases"):
        TrainingSet([], DATA, MULTIPLE)
