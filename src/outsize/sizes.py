"""Sizes and rates as people write them: ``6GiB``, ``500MB``, ``3GB/s``."""

from __future__ import annotations

import re

from outsize.errors import UsageError

GIB = 1024**3
MOST_BYTES = 2**63 - 1  # more than any file or memory can have
UNITS: dict[str, int] = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGTP", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
# "GB", "gb" and "GIB" are clear; "Gb" means bits to half of its writers, so it is refused.
SPELLINGS: dict[str, int] = UNITS | {
    form(unit): size for unit, size in UNITS.items() for form in (str.lower, str.upper)
}
NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of ``"6GiB"``, ``"500MB"``, ``"1.5TiB"`` or ``"123"`` (bytes), rounded down. Raises UsageError."""
    match = NUMBER.fullmatch(text) if len(text) < 100 else None  # Python refuses integers of thousands of digits
    factor = None if match is None else SPELLINGS.get(match[2] or "B")
    if match is None or factor is None:
        raise UsageError(f"not a size: {text!r}", need="a number and a unit of " + ", ".join(UNITS), remedy="6GiB")
    whole, _, fraction = match[1].partition(".")
    # In integers: a float loses bytes above 2**53.
    size = int((whole or "0") + fraction) * factor // int(10 ** len(fraction))
    if size > MOST_BYTES:
        raise UsageError(f"not a size: {text!r}", need=f"at most {MOST_BYTES} bytes", remedy="6GiB")
    return size


def parse_rate(text: str) -> float:
    """Bytes per second of ``"3GB/s"``. Raises UsageError, also for zero."""
    size, slash, second = text.strip().rpartition("/")
    try:
        rate = parse_size(size) if slash and second.strip() == "s" else 0
    except UsageError:
        rate = 0
    if not rate:
        raise UsageError(f"not a rate: {text!r}", need="a size per second, above zero", remedy="3GB/s")
    return float(rate)


def format_size(size: int | float) -> str:
    """Bytes in GiB with the unit: ``"5.6 GiB"``, ``"0.50 GiB"``, ``"0.062 GiB"``.

    Below 0.001 GiB that unit says nothing to a reader, and it is ``"0.50 MiB"``, ``"2.00 KiB"`` or ``"12 B"``.
    """
    gib = size / GIB
    magnitude = abs(gib)
    if size == 0:
        return "0 GiB"
    if magnitude >= 0.9995:
        return f"{gib:.1f} GiB"
    if magnitude >= 0.0995:
        return f"{gib:.2f} GiB"
    if magnitude >= 0.001:
        return f"{gib:.3f} GiB"
    for unit in ("MiB", "KiB"):
        if abs(size) >= 0.01 * SPELLINGS[unit] and abs(size) >= 1024:
            return f"{size / SPELLINGS[unit]:.2f} {unit}"
    return f"{size:.0f} B"


def format_rate(rate: float) -> str:
    """Bytes per second in GB/s, or in MB/s below 1 GB/s: ``"3.0 GB/s"``, ``"150 MB/s"``."""
    return f"{rate / 1e9:.1f} GB/s" if rate >= 0.9995e9 else f"{rate / 1e6:.0f} MB/s"
