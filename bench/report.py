"""From runs to figures: medians with their spread, ratios, the physical limits, and a table of them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines import Run

GIB = 1 << 30
NOT_ENFORCED = (
    "THE LIMIT WAS NOT ENFORCED: no memory cgroup could be made here (it takes root); all memory was free to use"
)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least, largest and count."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def machine() -> dict[str, Any]:
    """What was measured on, without the machine's name."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "ram_bytes": int(memory.group(1)) * 1024 if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def result_name() -> str:
    """``<date>-<machine>.json`` for the results folder."""
    facts = machine()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{facts['cpu']} {facts['cores']} cores".lower()).strip("-")
    return f"{datetime.date.today().isoformat()}-{slug}.json"


def keep(result: dict[str, Any], out: str) -> None:
    """Writes a result to the file ``out``; where that is "", behind the others of today and this machine."""
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n")
        return
    path = Path(__file__).parent / "results" / result_name()
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {"schema": 1, "runs": []}
    kept["runs"].append(result)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def summary(runs: Sequence[Run], stored: int) -> dict[str, Any]:
    """One engine's figures over all its runs that did not fail.

    ``stored`` is the checkpoint's size in bytes: reading it once at the disk's rate is the physical limit of a cold
    first token.
    """
    good = [run for run in runs if not run.failure]
    if not good:
        return {"failure": runs[-1].failure}
    token_s = [second for run in good for second in run.printed["token_s"]]
    token_bytes = [count for run in good for count in run.printed["token_disk_bytes"]]
    rates = [count / second for count, second in zip(token_bytes, token_s, strict=True)]
    fractions = [
        count / second / run.disk_bytes_per_s
        for run in good
        for count, second in zip(run.printed["token_disk_bytes"], run.printed["token_s"], strict=True)
    ]
    disk_bytes_per_s = statistics.median(run.disk_bytes_per_s for run in good)
    cold = spread([run.printed["cold_first_token_s"] for run in good])
    cold_over_limit = [run.printed["cold_first_token_s"] * run.disk_bytes_per_s / stored for run in good]
    # A token's disk bytes at the disk's full rate: what the same traffic would take if the disk never waited.
    token_limit = statistics.median(token_bytes) / disk_bytes_per_s
    return {
        "failure": "",
        "failed_runs": len(runs) - len(good),
        "version": good[-1].printed["version"],
        "token_s": spread(token_s),
        "token_disk_bytes": spread(token_bytes),
        "bytes_per_s": spread(rates),
        "disk_fraction": statistics.median(fractions),
        "disk_bytes_per_s": disk_bytes_per_s,
        "token_limit_s": token_limit,
        "cold_first_token_s": cold,
        "cold_limit_s": stored / disk_bytes_per_s,
        "cold_over_limit": statistics.median(cold_over_limit),
        "peak_rss_bytes": max(run.printed["peak_rss_bytes"] for run in good),
        "peak_cgroup_bytes": max(run.outcome["peak_bytes"] or 0 for run in good) or None,
        "peak_anonymous_bytes": max(run.outcome["peak_anonymous_bytes"] or 0 for run in good) or None,
        "tokens": good[-1].printed["tokens"],
    }


_HEADINGS = (
    "engine",
    "s/token",
    "min-max (n)",
    "vs outsize",
    "GB/token",
    "GB/s",
    "of disk",
    "TTFT s",
    "x limit",
    "peak GiB",
)
_WIDTHS = (11, 8, 18, 11, 9, 6, 8, 7, 8, 9)


def _row(cells: Sequence[str]) -> str:
    return " ".join(
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.2f}"


def table(engines: dict[str, dict[str, Any]]) -> str:
    """One line per engine; a failed one says why."""
    own = engines.get("outsize", {}).get("token_s")
    lines = [_row(_HEADINGS)]
    for name, figures in engines.items():
        if figures["failure"]:
            lines.append(f"{name.ljust(_WIDTHS[0])} failed: {figures['failure']}")
            continue
        token = figures["token_s"]
        ratio = f"{token['median'] / own['median']:.2f}x" if own else "-"
        lines.append(
            _row(
                (
                    name,
                    f"{token['median']:.2f}",
                    f"{token['min']:.2f}-{token['max']:.2f} ({token['n']})",
                    ratio,
                    f"{figures['token_disk_bytes']['median'] / 1e9:.2f}",
                    f"{figures['bytes_per_s']['median'] / 1e9:.2f}",
                    f"{figures['disk_fraction']:.0%}",
                    f"{figures['cold_first_token_s']['median']:.1f}",
                    f"{figures['cold_over_limit']:.2f}",
                    _size(figures["peak_rss_bytes"]),
                )
            )
        )
    return "\n".join(lines)
