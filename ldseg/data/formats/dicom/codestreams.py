"""The size that a compressed frame claims by itself, before a decoder makes room for it."""

from __future__ import annotations

import struct

NO_FRAME = {0xC4, 0xC8, 0xCC}  # of the markers from 0xC0 to 0xCF, those that begin no frame
JPEG_LS = 0xF7
JPEG_2000 = b"\xff\x4f\xff\x51"


def size_of(stream: bytes) -> tuple[int, int]:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 stream (ITU-T T.81 B.2.2, T.87 C.2.2, T.800 A.5.1).

    Raises:
        ValueError: it is none, or claims no size.
    """
    if stream[:4] == JPEG_2000:
        right, bottom, left, top = struct.unpack(">IIII", stream[8:24])
        return bottom - top, right - left
    at = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in NO_FRAME):
            rows, columns = struct.unpack(">HH", stream[at + 5 : at + 9])
            return rows, columns
        else:
            at += 2 + max(2, int.from_bytes(stream[at + 2 : at + 4], "big"))
    raise ValueError("the compressed frame claims no size")
