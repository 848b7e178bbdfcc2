"""Damaged and hostile NIfTI files are refused by one sentence, before they cost memory."""

import gzip
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
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti_header((1200, 1200, 1200)) + bytes(4)))
    assert "truncated" in refusal(tmp_path / "b.nii.gz")


READ_WITHIN_MEMORY = """
import resource, sys
from pathlib import Path
from ldseg.data.errors import CaseError
from ldseg.data.volume import read_volume
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(read_volume(Path(sys.argv[1]), case="bomb", spatial_dims=3, max_voxels=10**6).array.shape)
except CaseError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def write_bomb(path: Path, head: bytes) -> None:
    """200 MB of zeros behind a header, compressed to a fifth of a megabyte."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(50):
            file.write(bytes(4_000_000))


@pytest.mark.parametrize("trick", ["tail", "offset", "extension"])
def test_a_gzip_bomb_costs_no_memory(tmp_path, trick):
    head = bytes(nifti_header((8, 8, 8), offset=352 if trick == "tail" else 300_000_000 if trick == "offset" else 1024))
    extension = b"\0" * 4 if trick != "extension" else b"\1\0\0\0" + struct.pack("<ii", 2**30, 6)
    write_bomb(tmp_path / "bomb.nii.gz", head + extension)
    command = [sys.executable, "-c", READ_WITHIN_MEMORY, str(tmp_path / "bomb.nii.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    first, megabytes = done.stdout.strip().splitlines()[-2:]
    assert int(megabytes) < 60, done.stdout
    assert first == "(1, 8, 8, 8)" if trick == "tail" else first.startswith(("bomb: ", "(1, 8"))
