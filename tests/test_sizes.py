import pytest

from outsize.errors import UsageError
from outsize.sizes import format_rate, format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", 6 * 2**30),
        ("500MB", 500_000_000),
        ("1.5TiB", 3 * 2**39),
        ("123", 123),
        ("123B", 123),
        ("0", 0),
        (" 2 kib ", 2048),
        (".5GB", 500_000_000),
        ("1.GIB", 2**30),
        ("0.1KiB", 102),
        ("9007199254740993", 9007199254740993),
        ("1PB", 10**15),
        ("8388607TiB", 8388607 * 2**40),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1GiB", "6 G", "6Gb", "1e9", "6GiB/s", "six", "1.2.3GB", "٣GB", "6GiB,7GiB", "8388608TiB", "9" * 5000],
)
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


def test_parse_rate() -> None:
    assert parse_rate("3GB/s") == 3e9
    assert parse_rate(" 1.5 GiB / s ") == 1.5 * 2**30


@pytest.mark.parametrize("text", ["", "3GB", "3GB/min", "0GB/s", "fast/s", "3Gb/s", "GB/s"])
def test_parse_rate_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="not a rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 GiB"),
        (6 * 2**30, "6.0 GiB"),
        (int(328.26 * 2**30), "328.3 GiB"),
        (2**30 - 1, "1.0 GiB"),
        (2**29, "0.50 GiB"),
        (64 * 2**20, "0.062 GiB"),
        (2**19, "0.50 MiB"),
        (2048, "2.00 KiB"),
        (12, "12 B"),
        (-3 * 2**30, "-3.0 GiB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


def test_format_rate() -> None:
    assert format_rate(3e9) == "3.0 GB/s"
    assert format_rate(150e6) == "150 MB/s"
