import math

import pytest

from cutlayer.report.human import human_bytes, human_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0004, "0.4 ms"),
        (0.0999, "99.9 ms"),
        (0.09996, "100 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (99.94, "99.9 s"),
        (99.96, "1m 40s"),
        (3599.6, "1h 00m"),
        (47 * 3600 + 3599, "2d 00h"),
        (math.nan, "?"),
    ],
)
def test_seconds_change_unit_without_a_gap(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (102_350, "100 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1536 * 1024**2, "1.5 GiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_bytes_change_unit_without_a_gap(num_bytes: int, text: str) -> None:
    assert human_bytes(num_bytes) == text
