"""Large uploads as forms: their bytes come piece by piece and are never whole in memory."""

from __future__ import annotations

from collections.abc import Iterator

import nibabel as nib
import numpy as np

BOUNDARY = b"----b"


HEAD = b'--%s\r\nContent-Disposition: form-data; name="image"; filename="large.nii"\r\n\r\n' % BOUNDARY


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def nifti_of(megabytes: int) -> Iterator[bytes]:
    """A large image that is never in one piece."""
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), np.eye(4))
    image.header.set_data_shape((1024, 256, megabytes))
    image.header.set_data_offset(352)
    yield bytes(image.header.binaryblock) + bytes(4)
    piece = np.random.default_rng(0).bytes(2**20)
    for _ in range(megabytes):
        yield piece


def form_of(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield HEAD
    yield from pieces
    yield b"\r\n--%s--\r\n" % BOUNDARY
