"""Planes and their pictures: expected values come from nibabel and from the file's own array."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from service import Service, load, problem, write_image

from ldseg.data.errors import CaseError
from ldseg.data.volume import read_volume
from ldseg.pictures import case, overlays, planes

ORIENTATIONS = [("R", "A", "S"), ("L", "P", "S"), ("P", "S", "R"), ("S", "R", "A"), ("A", "L", "I"), ("I", "P", "L")]


def oriented(codes: tuple[str, str, str], shape: tuple[int, int, int] = (5, 6, 7)) -> nib.Nifti1Image:
    """A volume whose axes run towards the given sides, every voxel with a value of its own."""
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    canonical = nib.Nifti1Image(values, np.diag([0.5, 1.0, 3.0, 1.0]))
    change = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(canonical.affine), nib.orientations.axcodes2ornt(codes)
    )
    return canonical.as_reoriented(change)


def on_the_page(canonical: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Radiological: right on the left, anterior and superior up, anterior on the left of a sagittal plane."""
    return np.take(canonical, index, axis=axis).T[::-1, ::-1]


def lay(path: Path, dims: int = 3, channels: int = 1) -> planes.Geometry:
    return planes.geometry(path, case="c", spatial_dims=dims, in_channels=channels, max_voxels=2**29)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_planes_lie_as_nibabel_says(codes: tuple[str, str, str], ending: str, tmp_path: Path) -> None:
    image, path = oriented(codes), tmp_path / f"volume{ending}"
    scaled = nib.Nifti1Image(np.asarray(image.dataobj) * 0.37 - 3, image.affine)
    scaled.set_data_dtype(np.int16)  # stored as integers with a slope and an intercept
    nib.save(scaled, path)
    assert nib.load(path).dataobj.slope != 1
    expected = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    geo = lay(path)
    assert geo.anatomical and geo.shape == (5, 6, 7) and geo.spacing == pytest.approx((0.5, 1.0, 3.0))
    for axis, index in itertools.chain.from_iterable(((a, 0), (a, 2), (a, geo.shape[a] - 1)) for a in range(3)):
        np.testing.assert_allclose(
            planes.read_plane(path, geo, axis, index, case="c"), on_the_page(expected, axis, index)
        )  # fmt: skip
    np.testing.assert_allclose([geo.pixel(axis) for axis in range(3)], [(3.0, 1.0), (3.0, 0.5), (1.0, 0.5)])


def test_a_planes_memory_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    path = tmp_path / "large.nii"
    nib.save(nib.Nifti1Image(np.zeros((192, 192, 400), dtype=np.int16), np.eye(4)), path)
    geo = lay(path)
    tracemalloc.start()
    try:
        for axis in range(3):
            planes.read_plane(path, geo, axis, 5, case="c")
        planes.window(path, case="c")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 4  # the survey's thinned planes are the most, in float64


def test_images_of_two_dimensions_and_over_time_have_their_own_axes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "flat.png")
    geo = lay(tmp_path / "flat.png", dims=2)
    assert geo.axes == (2,) and geo.shape == (9, 12, 1)
    np.testing.assert_array_equal(planes.read_plane(tmp_path / "flat.png", geo, 2, 0, case="c"), pixels)
    values = np.random.default_rng(0).normal(size=(6, 8, 1, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(values[..., 0], np.diag([0.5, 2, 1, 1])), tmp_path / "flat.nii.gz")
    geo = lay(tmp_path / "flat.nii.gz", dims=2)
    assert geo.axes == (2,) and geo.pixel(2) == (2.0, 0.5)
    found = planes.read_plane(tmp_path / "flat.nii.gz", geo, 2, 0, case="c")
    np.testing.assert_array_equal(found, values[:, :, 0, 0].T[::-1])
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "film.nii.gz")
    geo = lay(tmp_path / "film.nii.gz")
    assert geo.shape == (6, 8, 5) and not geo.anatomical
    for axis in range(3):
        found = planes.read_plane(tmp_path / "film.nii.gz", geo, axis, 3, case="c")
        np.testing.assert_array_equal(found, np.take(values[:, :, 0], 3, axis=axis).T[::-1])


def test_axes_are_those_that_segmenting_takes(tmp_path: Path) -> None:
    values = np.zeros((6, 8, 5, 2), dtype=np.float32)
    values[..., 0] = np.random.default_rng(0).normal(size=(6, 8, 5))
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "two.nii")
    volume = read_volume(tmp_path / "two.nii", case="c", spatial_dims=3, in_channels=2)
    geo = lay(tmp_path / "two.nii", channels=2)
    assert geo.shape == volume.shape
    found = planes.read_plane(tmp_path / "two.nii", geo, 1, 4, case="c")
    np.testing.assert_array_equal(found, on_the_page(volume.array[0], 1, 4))


def test_broken_and_oversized_files_are_told(tmp_path: Path) -> None:
    path = write_image(tmp_path / "whole.nii.gz")
    for size in (5, 200, path.stat().st_size - 600):
        (tmp_path / "cut.nii.gz").write_bytes(path.read_bytes()[:size])
        with pytest.raises(CaseError):
            planes.read_plane(tmp_path / "cut.nii.gz", lay(path), 2, 10, case="c")
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 2))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / "huge.nii").write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(CaseError, match="too large"):
        lay(tmp_path / "huge.nii")
    with pytest.raises(CaseError):
        lay(tmp_path / "gone.nii")


def test_the_fullest_planes_are_where_most_is_labelled(tmp_path: Path) -> None:
    label = np.zeros((5, 6, 7), dtype=np.uint8)
    label[1, 2:5, 3] = label[1:4, 4, 3] = 2  # most on planes 1, 4 and 3
    image = nib.Nifti1Image(label, np.eye(4))
    flipped = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nib.save(flipped, tmp_path / "label.nii.gz")
    geo = lay(tmp_path / "label.nii.gz")
    assert planes.fullest(tmp_path / "label.nii.gz", geo, case="c") == (1, 4, 3)


def test_colours_are_those_of_the_other_pictures() -> None:
    assert overlays.COLOURS == case.COLOURS
    light = [np.dot([0.2126, 0.7152, 0.0722], overlays.rgb(colour)) for colour in overlays.HEAT]
    assert light == sorted(light)


def test_maps_are_coloured_by_their_kind() -> None:
    known = overlays.structures(("organ", "nodule"), (0, 4, 9))
    values = np.array([[0, 4], [9, 1]])
    colours, cover = overlays.overlay("label", values, known)
    np.testing.assert_array_equal(cover, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(colours[1, 0], overlays.rgb(overlays.COLOURS[1]))
    np.testing.assert_array_equal(overlays.overlay("sample-0", values, known)[1], cover)
    _, cover = overlays.overlay("prob-nodule", np.array([[0.25, 2.0, np.nan]]), known)
    np.testing.assert_allclose(cover, [[0.25, 1, 0]])
    colours, cover = overlays.overlay("entropy", np.array([[0, np.log(2), 9]]), known)
    np.testing.assert_allclose(cover, [[0, 1, 1]])
    np.testing.assert_allclose(colours[0, 1], overlays.rgb(overlays.HEAT[-1]))


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def shown(service: Service, data: Path) -> str:
    """A cohort with one case that is done and one whose image does not exist."""
    cohort = service.post({"case_2": data / "case_2.nii.gz", "gone": data / "gone.nii.gz"})
    service.wait(cohort)
    return cohort


def ask(service: Service, cohort: str, name: str = "case_2", **query: str | float) -> httpx.Response:
    return service.http.get(f"/v1/cohorts/{cohort}/cases/{name}/slice.png", params=query)


@pytest.mark.parametrize(("axis", "index"), [(0, 4), (1, 7), (2, 0)])
@pytest.mark.parametrize("key", ["none", "label", "prob-organ", "entropy"])
def test_pictures_equal_the_arrays(service: Service, shown: str, data: Path, axis: int, index: int, key: str) -> None:
    """The pixel in the middle of each voxel, but for those under the letters at the edges."""
    source = nib.as_closest_canonical(nib.load(data / "case_2.nii.gz"))
    array, spacing = source.get_fdata(), np.linalg.norm(source.affine[:3, :3], axis=0)
    low, high = np.percentile(array, (0.5, 99.5))
    expected = np.repeat(np.clip((on_the_page(array, axis, index) - low) / (high - low), 0, 1)[..., None] * 255, 3, 2)
    if key != "none":
        content = service.http.get(f"/v1/cohorts/{shown}/cases/case_2/files/{key}").content
        values = on_the_page(nib.as_closest_canonical(load(content)).get_fdata(), axis, index)
        colours, cover = independent_colours(key, values)
        cover = 0.6 * cover[..., None]
        expected = (1 - cover) * expected + cover * colours
    answer = ask(service, shown, axis=axis, index=index, overlay=key, opacity=0.6, size=800)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    drawn = pixels(answer.content)
    rows, columns = expected.shape[:2]
    width, height = (spacing[k] for k in range(3) if k != axis)
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(columns * width / (rows * height), rel=0.01)
    assert max(drawn.shape) == 800
    for r, c in itertools.product(range(1, rows - 1), range(1, columns - 1)):
        pixel = drawn[round((r + 0.5) * drawn.shape[0] / rows), round((c + 0.5) * drawn.shape[1] / columns)]
        np.testing.assert_allclose(pixel, expected[r, c], atol=1.01)


def independent_colours(key: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours and cover, written anew: the model's structures organ and nodule have the label values 1 and 2."""
    organ, nodule = np.array([0x35, 0xC9, 0xFF]), np.array([0xFF, 0xB0, 0x2E])
    if key == "label":
        return np.where((values == 1)[..., None], organ, nodule), (values > 0).astype(float)
    if key == "prob-organ":
        return np.broadcast_to(organ, (*values.shape, 3)), values
    stops = np.array([[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in overlays.HEAT])
    share = np.clip(values / np.log(2), 0, 1)
    where, rest = np.divmod(share * 9, 1)
    where = where.astype(int)
    colours = stops[where] * (1 - rest[..., None]) + stops[np.minimum(where + 1, 9)] * rest[..., None]
    return colours, np.clip(share / 0.15, 0, 1)


def test_letters_say_where_the_right_side_is(service: Service, shown: str) -> None:
    with_letters = pixels(ask(service, shown, axis=2, index=3, size=640).content)
    middle = with_letters.shape[0] // 2
    left, right = with_letters[middle - 12 : middle + 12, 4:30], with_letters[middle - 12 : middle + 12, -30:-4]
    for side in (left, right):  # white on a black edge, which noise in grey does not have side by side
        assert (side == 255).all(axis=2).sum() > 5 and (side == 0).all(axis=2).sum() > 5
    info = service.http.get(f"/v1/cohorts/{shown}/cases/case_2/volume-info").json()
    assert info["orientation"] == "radiological"
    assert [axis["name"] for axis in info["axes"]] == ["sagittal", "coronal", "axial"]


def test_volume_info_tells_shape_spacing_and_maps(service: Service, shown: str, data: Path) -> None:
    info = service.http.get(f"/v1/cohorts/{shown}/cases/case_2/volume-info").json()
    source = nib.as_closest_canonical(nib.load(data / "case_2.nii.gz"))
    assert info["shape"] == list(source.shape) and info["image"] and info["volume"]
    np.testing.assert_allclose(info["spacing"], np.linalg.norm(source.affine[:3, :3], axis=0), rtol=1e-5)
    np.testing.assert_allclose(info["range"], np.percentile(source.get_fdata(), (0.5, 99.5)), rtol=1e-5)
    assert {"label", "entropy", "prob-organ"} <= set(info["overlays"])
    assert info["heat"]["colours"] == list(overlays.HEAT)
    assert [(one["name"], one["value"]) for one in info["structures"]] == [("organ", 1), ("nodule", 2)]
    gone = service.http.get(f"/v1/cohorts/{shown}/cases/gone/volume-info").json()
    assert gone["axes"] == [] and "gone" in gone["missing"]


def test_what_is_unchanged_is_not_sent_again(service: Service, shown: str) -> None:
    for path in ("slice.png?axis=1&index=2&overlay=label", "image"):
        url = f"/v1/cohorts/{shown}/cases/case_2/{path}"
        first = service.http.get(url)
        again = service.http.get(url, headers={"If-None-Match": first.headers["ETag"]})
        assert (first.status_code, again.status_code) == (200, 304) and not again.content
        assert first.headers["Cache-Control"] == "private, no-cache"
    other = ask(service, shown, axis=1, index=2, overlay="entropy")
    assert other.headers["ETag"] != ask(service, shown, axis=1, index=2, overlay="label").headers["ETag"]


def test_only_what_is_there_is_shown_and_only_to_who_may_see_it(service: Service, shown: str) -> None:
    problem(ask(service, shown, axis=2, index=11), 422, "invalid-request")
    problem(ask(service, shown, axis=3), 422, "invalid-request")
    problem(ask(service, shown, overlay="../../jobs.db"), 404, "not-found")
    problem(ask(service, shown, name="gone"), 404, "not-found")
    problem(ask(service, shown, name="nobody"), 404, "not-found")
    for path in ("slice.png", "image", "volume-info"):
        answer = httpx.get(f"{service.url}/v1/cohorts/{shown}/cases/case_2/{path}", trust_env=False)
        problem(answer, 401, "unauthorized")


def test_the_image_is_sent_as_it_is_and_never_from_outside(service: Service, data: Path) -> None:
    path = write_image(data / "moved.nii.gz", 9)
    cohort = service.post({"moved": path})
    service.wait(cohort)
    url = f"/v1/cohorts/{cohort}/cases/moved/image"
    assert service.http.get(url).content == path.read_bytes()
    path.unlink()
    path.symlink_to(data.parent / "outside.nii.gz")  # exists, but may not be read
    try:
        problem(service.http.get(url), 404, "not-found")
        info = service.http.get(url.replace("/image", "/volume-info")).json()
        assert not info["image"] and info["range"] is None
        drawn = pixels(ask(service, cohort, "moved", axis=2, index=1).content)
        assert (drawn[40:-40, 40:-40] == 0).all()  # nothing of the image, between the letters at the edges
    finally:
        path.unlink()


def test_an_upload_is_kept_and_its_map_is_shown_also_without_it(service: Service, data: Path) -> None:
    with (data / "case_1.nii.gz").open("rb") as file:
        answer = service.http.post("/v1/segmentations", files={"image": file}, data={"samples": "6"}).json()
    about = f"/v1/cohorts/{answer['cohort']}/cases/case_1/volume-info"
    assert service.http.get(about).json()["image"]
    for kept in (service.log.parent / "runs" / "service" / "uploads").glob("*/case_1.nii.gz"):
        kept.unlink()
    info = service.http.get(about).json()
    assert not info["image"] and "no longer" in info["missing"] and len(info["axes"]) == 3
    label = nib.as_closest_canonical(load(service.http.get(answer["files"]["label"]["href"]).content)).get_fdata()
    plane = on_the_page(label, 2, 5)
    drawn = pixels(ask(service, answer["cohort"], "case_1", axis=2, index=5, overlay="label", opacity=1).content)
    rows, columns = plane.shape
    for r, c in itertools.product(range(1, rows - 1), range(1, columns - 1)):
        pixel = drawn[round((r + 0.5) * drawn.shape[0] / rows), round((c + 0.5) * drawn.shape[1] / columns)]
        expected = [[0, 0, 0], [0x35, 0xC9, 0xFF], [0xFF, 0xB0, 0x2E]][int(plane[r, c])]
        assert pixel.tolist() == expected
