"""Damaged and hostile NIfTI files are refused by one sentence, before they cost memory."""

import gzip
import math
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ldseg.data.errors import CaseError
from ldseg.data.volume import read_volume


def save(path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag((0.9, 0.8, 2.5, 1.0))), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CaseError) as caught:
        read_volume(path, case="a", spatial_dims=3)
    return str(caught.value)


def test_a_file_cut_anywhere_is_told_to_be_unreadable(tmp_path):
    for name in ("a.nii.gz", "a.nii"):
        content = save(tmp_path / name).read_bytes()
        for size in [*range(0, len(content) - 1, 37), len(content) - 1]:
            (tmp_path / name).write_bytes(content[:size])
            text = refusal(tmp_path / name)
            assert "can't be read" in text or "truncated" in text


def test_a_flipped_byte_in_compressed_voxels_is_found_by_the_checksum(tmp_path):
    content = bytearray(save(tmp_path / "a.nii.gz").read_bytes())
    content[-6] ^= 1  # in the stored checksum
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert "can't be read" in refusal(tmp_path / "a.nii.gz")


def test_random_damage_to_the_header_never_escapes_as_another_error(tmp_path):
    whole = save(tmp_path / "a.nii").read_bytes()
    generator = np.random.default_rng(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        content = bytearray(whole)
        for position in generator.integers(0, 352, 4):
            content[position] = generator.integers(256)
        (tmp_path / "b.nii").write_bytes(content)
        try:
            read_volume(tmp_path / "b.nii", case="b", spatial_dims=3, max_voxels=10**6)
            outcomes["read"] += 1
        except CaseError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def nifti_header(shape: tuple[int, ...], *, offset: int = 352) -> bytearray:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    block = bytearray(header.binaryblock)
    block[108:112] = struct.pack("<f", offset)
    block[344:348] = b"n+1\0"
    return block


def test_a_header_that_claims_an_enormous_shape_is_refused_before_allocation(tmp_path):
    block = nifti_header((30000, 30000, 30000)) + bytes(4 + 4096)
    for name, content in (("a.nii", bytes(block)), ("a.nii.gz", gzip.compress(block))):
        (tmp_path / name).write_bytes(content)
        assert "claims 27000000000000 voxels" in refusal(tmp_path / name)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti_header((600, 600, 600)) + bytes(4)))
    assert "truncated" in refusal(tmp_path / "b.nii.gz")


READ_WITHIN_MEMORY = """
import sys, time
from pathlib import Path
from ldseg.data.errors import CaseError
from ldseg.data.volume import read_volume
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before, start = peak(), time.process_time()
try:
    print(read_volume(Path(sys.argv[1]), case="bomb", spatial_dims=3, max_voxels=10**6).array.shape)
except CaseError as error:
    print(error)
print((peak() - before) // 1024, time.process_time() - start)
"""


BLOCK = 4_000_000


def write_bomb(path: Path, head: bytes, blocks: int = 1000) -> None:
    """4 GB of zeros behind a header, compressed to 4 MB: gzip members one after the other."""
    member = gzip.compress(bytes(BLOCK), 6)
    with path.open("wb") as file:
        file.write(gzip.compress(head))
        for _ in range(blocks):
            file.write(member)


def read_alone(path: Path) -> tuple[str, int, float]:
    """What reading says in a process of its own, the megabytes that it took, and its seconds of processor time."""
    command = [sys.executable, "-c", READ_WITHIN_MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    first, used = done.stdout.strip().splitlines()[-2:]
    megabytes, seconds = used.split()
    return first, int(megabytes), float(seconds)


@pytest.mark.parametrize("trick", ["tail", "offset", "extension", "one member"])
def test_a_gzip_bomb_is_refused_at_once_and_costs_no_memory(tmp_path, trick):
    head = bytes(nifti_header((8, 8, 8), offset={"offset": 300_000_000, "extension": 1024}.get(trick, 352)))
    extension = b"\0" * 4 if trick != "extension" else b"\1\0\0\0" + struct.pack("<ii", 2**30, 6)
    bomb = tmp_path / "bomb.nii.gz"
    if trick == "one member":
        with gzip.open(bomb, "wb", compresslevel=1) as file:
            file.write(head + extension)
            for _ in range(100):
                file.write(bytes(BLOCK))
    else:
        write_bomb(bomb, head + extension)
    text, megabytes, seconds = read_alone(bomb)
    assert text.startswith("bomb: ") and "can't be read" in text
    assert trick in ("offset", "extension") or "more bytes than the shape" in text
    # to unpack 4 GB takes seconds and more; the rest of the time is Python's start
    assert megabytes < 60 and seconds < 30, (megabytes, seconds)


def test_what_a_header_claims_is_not_allocated_before_it_is_there(tmp_path):
    block = nifti_header((1000, 1000, 1)) + bytes(4)
    (tmp_path / "claim.nii.gz").write_bytes(gzip.compress(bytes(block)) + np.random.default_rng(0).bytes(5000))
    text, megabytes, _ = read_alone(tmp_path / "claim.nii.gz")
    assert "can't be read" in text and megabytes < 60


def test_gzip_members_one_after_the_other_are_one_file(tmp_path):
    content = save(tmp_path / "a.nii").read_bytes()
    parts = [content[:10], content[10:400], content[400:]]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(gzip.compress(part) for part in parts) + bytes(512))
    volume = read_volume(tmp_path / "b.nii.gz", case="b", spatial_dims=3)
    assert np.array_equal(volume.array, read_volume(tmp_path / "a.nii", case="a", spatial_dims=3).array)
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(content) + b"garbage")
    assert "can't be read" in refusal(tmp_path / "c.nii.gz")
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(content + bytes(2000)))  # filled up to a block: as it was
    assert read_volume(tmp_path / "d.nii.gz", case="d", spatial_dims=3).content_digest == volume.content_digest


def field(path: Path, offset: int, kind: str, *values: float) -> Path:
    """The file with some numbers of its header overwritten."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}{kind}", content, offset, *values)
    path.write_bytes(content)
    return path


PIXDIM, VOX_OFFSET, SCL, QFORM_CODE, QUATERN, SROW = 76, 108, 112, 252, 256, 280


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 1e-45, 3e38])
@pytest.mark.parametrize("form", ["none", "qform", "sform"])
def test_impossible_spacings_are_refused_or_overruled_by_the_transform(tmp_path, bad, form):
    path = save(tmp_path / "a.nii")
    codes = {"none": (0, 0), "qform": (1, 0), "sform": (0, 1)}[form]
    field(field(path, QFORM_CODE, "h", *codes), PIXDIM + 8, "f", bad)
    if form == "sform":  # the sform holds the spacing, pixdim is not asked
        assert read_volume(path, case="a", spatial_dims=3).spacing_mm == pytest.approx((0.9, 0.8, 2.5))
        field(path, SROW, "f", bad, bad, bad)
    try:
        spacing = read_volume(path, case="a", spatial_dims=3).spacing_mm
    except CaseError as error:
        assert "singular" in str(error) or "can't be read" in str(error)
    else:  # a negative size counts by its amount; a tiny one is a number
        assert bad in (-1.0, 1e-45, 3e38) and all(math.isfinite(s) and s > 0 for s in spacing)


def test_singular_and_unreal_transforms_are_refused(tmp_path):
    for row in ((0, 0, 0, 0), (0.9, 0.9, 0.9, 0), (math.nan, 0, 0, 0), (math.inf, 0, 0, 0), (0.9, 0, 0, math.nan)):
        path = field(field(save(tmp_path / "a.nii"), QFORM_CODE, "h", 0, 1), SROW, "f", *row)
        field(path, SROW + 16, "f", *(row if row[1] else (0, 0.8, 0, 0)))
        assert "singular" in refusal(path)
    path = field(field(save(tmp_path / "a.nii"), QFORM_CODE, "h", 1, 0), QUATERN, "f", math.nan, 2, 2)
    assert "singular" in refusal(path) or "can't be read" in refusal(path)


def test_voxels_that_are_no_numbers_are_counted_also_when_the_scale_makes_them(tmp_path):
    path = save(tmp_path / "a.nii")
    field(path, 352, "f", math.nan, math.inf, -math.inf)
    assert "3 voxels of" in refusal(path)
    path = field(save(tmp_path / "a.nii"), SCL, "f", 3e38, 0)
    assert "NaN or infinite" in refusal(path)
    for slope in (math.nan, math.inf, 0.0):  # the standard: such a slope is none
        path = field(save(tmp_path / "a.nii"), SCL, "f", slope, 5)
        try:
            assert np.isfinite(read_volume(path, case="a", spatial_dims=3).array).all()
        except CaseError as error:
            assert "can't be read" in str(error)


@pytest.mark.parametrize("offset", [1e4, 1e6, 2e7, 3e38, -352.0, 0.0, 348.0, math.nan, math.inf])
def test_voxels_that_start_beyond_the_file_or_in_its_header_are_refused(tmp_path, offset):
    path = field(save(tmp_path / "a.nii"), VOX_OFFSET, "f", offset)
    if offset == 0:  # "where they belong", says the standard's reader
        try:
            read_volume(path, case="a", spatial_dims=3)
        except CaseError as error:
            assert "can't be read" in str(error)
    else:
        assert "can't be read" in refusal(path)


def test_a_sequence_is_no_volume(tmp_path):
    for shape in ((6, 5, 4, 2), (6, 5, 4, 1, 2), (6, 5, 4, 1, 1, 1, 2)):
        nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "a.nii.gz")
        assert "not 3 spatial axes" in refusal(tmp_path / "a.nii.gz")


READ_MANY = """
import sys
from pathlib import Path
from ldseg.data.errors import CaseError
from ldseg.data.formats.raster import read_raster
from ldseg.data.volume import guess_spatial_dims, read_values, read_volume
for path in map(Path, sys.argv[1:]):
    for read in (
        lambda: read_volume(path, case="a", spatial_dims=3 if ".nii" in path.name else 2),
        lambda: read_values(path, case="a"),
        lambda: path.suffix == ".png" or guess_spatial_dims(path, case="a") and 0,
    ):
        try:
            read()
            print("read", path.name)
        except CaseError as error:
            print(error)
"""


def test_pipes_devices_and_folders_are_refused_and_never_waited_for(tmp_path):
    for ending in ("nii.gz", "nii", "png"):
        os.mkfifo(tmp_path / f"pipe.{ending}")
        (tmp_path / f"link.{ending}").symlink_to(f"pipe.{ending}")
        (tmp_path / f"zero.{ending}").symlink_to("/dev/zero")
        (tmp_path / f"loop.{ending}").symlink_to(f"loop.{ending}")
        (tmp_path / f"folder.{ending}").mkdir()
        (tmp_path / f"gone.{ending}").symlink_to("nowhere")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / f"socket.{ending}"))
    paths = sorted(map(str, tmp_path.iterdir()))
    command = [sys.executable, "-c", READ_MANY, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "read" not in {line.split()[0] for line in lines if ".png" not in line}
    for line in lines:
        wanted = "there is no file" if "gone." in line else "can't be read" if "loop." in line else "no regular file"
        assert wanted in line or line.startswith("read ") and ".png" in line, line


def test_a_link_to_a_file_is_read_as_the_file(tmp_path):
    save(tmp_path / "a.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to("a.nii.gz")
    volumes = [read_volume(tmp_path / f"{name}.nii.gz", case=name, spatial_dims=3) for name in ("a", "link")]
    assert volumes[0].content_digest == volumes[1].content_digest
