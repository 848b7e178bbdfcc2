"""Pictures: which slice they show, how it lies on the page, and that a file comes out whatever the case looks like."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ldseg.data.volume import Volume, read_volume
from ldseg.pictures.case import COLOURS, PictureCase, draw_case, draw_cohort
from ldseg.pictures.slice import cut
from ldseg.posterior.summary import PosteriorSummary

RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def volume_of(folder: Path, array: np.ndarray, affine: np.ndarray = RAS, name: str = "case") -> Volume:
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)
    return read_volume(path, case=name, spatial_dims=array.ndim)


def summary_of(label: np.ndarray, structures: tuple[str, ...] = ("organ", "nodule")) -> PosteriorSummary:
    """Certain of `label`, but for a doubt of one half on its first voxel row."""
    probability = np.stack([label == k for k in range(1, len(structures) + 1)]).astype(np.float32)
    entropy = np.zeros(label.shape, np.float32)
    entropy[0] = np.log(2)
    return PosteriorSummary(
        case="case",
        label=label,
        mean_probability=probability,
        predictive_entropy=entropy,
        sample_variance=np.zeros_like(entropy),
        volumes={name: np.array([1.0, 2.0, 3.0]) for name in structures},
        unit="ml",
        agreement=dict.fromkeys((*structures, "mean"), 0.9),
        seconds={},
        num_samples=3,
        num_steps=2,
        seed=0,
        model_digest="sha256:0",
    )


def test_a_volume_is_cut_where_its_structure_is_largest(tmp_path: Path) -> None:
    label = np.zeros((12, 14, 16), np.uint8)
    label[3:9, 2:12, 5] = 1  # a plate of 6 x 10 voxels across z
    part = cut(volume_of(tmp_path, label), summary_of(label))
    assert part.title == "axial slice 6 of 16" and (part.left, part.top) == ("R", "A")
    assert part.label.shape == (14, 12) and int(part.label.sum()) == 60


def test_much_coarser_voxels_say_which_axis_slices_are_stacked_along(tmp_path: Path) -> None:
    label = np.zeros((12, 14, 16), np.uint8)
    label[3:9, 2:12, 5] = 1
    part = cut(volume_of(tmp_path, label, np.diag([1, 3, 1, 1.0])), summary_of(label))
    assert part.title.startswith("coronal") and part.pixel == (1, 1) and part.label.shape == (16, 12)


def test_all_structures_are_shown_where_one_slice_holds_them(tmp_path: Path) -> None:
    label = np.zeros((16, 16, 16), np.uint8)
    label[2:6, 4:12, 4:12], label[10:14, 4:12, 4:12] = 1, 2  # only slices across y or z meet both
    assert set(np.unique(cut(volume_of(tmp_path, label), summary_of(label)).label)) == {0, 1, 2}


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SAL"])
def test_the_page_shows_the_patients_right_on_the_left_whatever_the_files_axes(
    tmp_path: Path, orientation: str
) -> None:
    """A bright plate whose only label is a block in the patient's right, anterior, upper corner."""
    label = np.zeros((20, 20, 20), np.uint8)
    label[12:18, 11:18, 10] = 1  # RAS: x high is right, y high is anterior
    codes = nib.orientations.axcodes2ornt(tuple(orientation))
    moved = nib.Nifti1Image(label, RAS).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), codes)
    )
    nib.save(moved, tmp_path / "case.nii.gz")
    volume = read_volume(tmp_path / "case.nii.gz", case="case", spatial_dims=3)
    part = cut(volume, summary_of(np.asarray(moved.dataobj)))
    assert part.title == "axial slice 11 of 20"
    rows, columns = np.nonzero(part.label)
    assert (rows.min(), rows.max()) == (2, 8), "anterior is up"
    assert (columns.min(), columns.max()) == (2, 7), "the patient's right is on the left"


def test_a_case_without_foreground_is_cut_where_it_is_most_uncertain(tmp_path: Path) -> None:
    label = np.zeros((8, 9, 10), np.uint8)
    part = cut(volume_of(tmp_path, label + 1.0), summary_of(label))
    assert part.title == "sagittal slice 1 of 8" and part.entropy.min() > 0.69


def test_pixels_keep_their_shape_in_2d(tmp_path: Path) -> None:
    label = np.zeros((30, 10), np.uint8)
    label[3:9, 2:8] = 1
    part = cut(volume_of(tmp_path, label, np.diag([0.5, 2.0, 1, 1])), summary_of(label))
    assert part.label.shape == (10, 30) and part.pixel == (2.0, 0.5) and part.ratio == pytest.approx(30 / 40)


def test_a_small_structure_in_a_large_slice_is_zoomed_in_on(tmp_path: Path) -> None:
    label = np.zeros((100, 80), np.uint8)
    label[60:70, 20:26] = 1
    summary = summary_of(label)
    summary.predictive_entropy[:] = 0
    part = cut(volume_of(tmp_path, label), summary)
    rows, columns = part.window
    assert part.label[part.window].sum() == 60 and rows.stop - rows.start < 80 / 2 and columns.stop - columns.start < 50
    assert (rows.stop - rows.start) / (columns.stop - columns.start) == pytest.approx(80 / 100, rel=0.1)


def test_a_truth_of_another_shape_is_refused(tmp_path: Path) -> None:
    label = np.zeros((8, 9), np.uint8)
    with pytest.raises(ValueError, match=r"must have shape \(8, 9\)"):
        draw_case(volume_of(tmp_path, label), summary_of(label), tmp_path / "p.png", truth=label.T)
    with pytest.raises(ValueError, match="no case to draw"):
        draw_cohort([], tmp_path / "p.png")


def test_the_picture_shows_each_structure_in_its_colour_and_the_doubt_in_bright_ones(tmp_path: Path) -> None:
    label = np.zeros((24, 20, 22), np.uint8)
    label[4:12, 4:16, 4:18], label[12:20, 4:16, 4:18] = 1, 2
    path = draw_case(volume_of(tmp_path, label), summary_of(label), tmp_path / "p.png", truth=label)
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in COLOURS[:2]:
        wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=1) < 12).sum() > 200, colour
    assert [p.name for p in tmp_path.glob("*.png")] == ["p.png"]


def test_odd_cases_are_drawn_too(tmp_path: Path) -> None:
    """One voxel of foreground, nothing at all, a constant image, many structures, three channels, a long name."""
    one = np.zeros((9, 7, 5), np.uint8)
    one[4, 3, 2] = 1
    flat = np.zeros((12, 40), np.uint8)
    colours = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    rgb = read_volume(tmp_path / "rgb.png", case="rgb", spatial_dims=2, in_channels=3)
    many = tuple(f"a_structure_with_a_long_name_{k}" for k in range(9))
    stripes = np.arange(20 * 30).reshape(20, 30) % 10
    cases = [
        PictureCase(volume_of(tmp_path, one, name="one"), summary_of(one), one),
        PictureCase(volume_of(tmp_path, flat, name="flat"), summary_of(flat)),
        PictureCase(rgb, summary_of(stripes.astype(np.uint8), many), stripes),
    ]
    path = draw_cohort(cases, tmp_path / "out" / "cohort.png", dpi=50)
    with Image.open(path) as picture:
        assert picture.size[0] == 660 and picture.size[1] > 300
