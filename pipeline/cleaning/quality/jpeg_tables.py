"""The quality of a JPEG, from the quantisation table in its file."""

import numpy as np
from numpy.typing import NDArray

# Luminance of Annex K of the JPEG standard (ITU-T T.81), row by row.
STANDARD = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip
_NUM = 64
_DQT, _SOS, _FIRST_SCAN_LESS = 0xDB, 0xDA, (0x01, *range(0xD0, 0xD9))


def jpeg_quality(data: bytes) -> int | None:
    """The quality, 1 to 100, of the IJG's encoder whose luma table is nearest in sum.

    Other encoders' tables are other multiples of it, so it is a scale, not their own number.

    Returns:
        None if the file is no JPEG or has no such table.
    """
    total = _sum_of_first_table(data)
    if total is None:
        return None
    return int(np.argmin(np.abs(_SUMS - total))) + 1


def _sum_of_first_table(data: bytes) -> int | None:
    """Sum of table 0; segments are walked up to the first scan."""
    if not data.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill
            place += 1
            continue
        if marker in _FIRST_SCAN_LESS:
            place += 2
            continue
        if marker == _SOS:
            return None
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if marker == _DQT and (total := _table_zero(body)) is not None:
            return total
        place += 2 + length
    return None


def _table_zero(body: bytes) -> int | None:
    place = 0
    while place < len(body):
        width = 2 if body[place] >> 4 else 1
        values = body[place + 1 : place + 1 + _NUM * width]
        if len(values) < _NUM * width:
            return None
        if body[place] & 15 == 0:
            return int(np.frombuffer(values, ">u2" if width == 2 else "u1").sum())
        place += 1 + _NUM * width
    return None


def _sums() -> NDArray[np.int64]:
    """Sum of the table for the qualities 1 to 100 (IJG's rule)."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((STANDARD[None] * scale[:, None] + 50) // 100, 1, 255)
    return np.asarray(tables.sum(axis=1), np.int64)


_SUMS = _sums()
