"""Decode with all weights in memory: tokens per second against llama.cpp and transformers, type by type.

    python bench/decode.py                 a 7B shape in bfloat16, int8 and int4; some 40 GB of checkpoints

Beside each figure stands the physical limit: the bytes that a token reads at the rate at which the memory was read in
the same run. The table goes to stdout, and the last line there is a JSON object.
"""

from __future__ import annotations

import json
import sys

import report
import resident
from report import machine

NEW_TOKENS = 24
WANTED = {"bf16": 1.0, "int8": 1.15, "int4": 1.0}  # times llama.cpp's tokens per second in the like type
WANTED_TRANSFORMERS = 2.2
WANTED_SHARE = 0.7


def main() -> int:
    """Command line; 1 if an engine failed."""
    options = resident.arguments(__doc__).parse_args()
    rows = resident.measure(resident.lineup(options, NEW_TOKENS), options.rounds)
    embedding = resident.embedding_bytes(options.shape)
    print(f"{'engine':14}{'type':6}{'tokens/s':>9}{'GB/token':>10}{'GB/s':>7}{'memory':>8}{'share':>7}")
    for row in rows:
        if row["failure"]:
            print(f"{row['engine']:14}{row['kind']:6} failed: {row['failure']}")
            continue
        row["token_bytes"] = row["stored_bytes"] - (0 if row["engine"] == "llama.cpp" else embedding)
        row["share"] = row["token_bytes"] / row["token_s"] / row["memory_bytes_per_s"]
        print(
            f"{row['engine']:14}{row['kind']:6}{1 / row['token_s']:9.2f}{row['token_bytes'] / 1e9:10.2f}"
            f"{row['token_bytes'] / row['token_s'] / 1e9:7.1f}{row['memory_bytes_per_s'] / 1e9:8.1f}{row['share']:7.0%}"
        )
    checks = verdicts(rows)
    for what, want, have in checks:
        print(f"{'met   ' if have >= want else 'MISSED'} {what}: {have:.2f} (wanted >= {want:.2f})")
    result = {"schema": 1, "benchmark": "decode", "shape": options.shape, "machine": machine(), "rows": rows}
    result["checks"] = [{"what": what, "want": want, "have": have} for what, want, have in checks]
    if options.out is not None:
        report.keep(result, options.out)
    print(json.dumps(result))
    return 1 if any(row["failure"] for row in rows) else 0


def verdicts(rows: list[dict[str, object]]) -> list[tuple[str, float, float]]:
    """What is to be shown: what, the least that is wanted, what was found."""
    found = []
    for kind, want in WANTED.items():
        ours, theirs = (resident.median(rows, engine, kind, "token_s") for engine in ("outsize", "llama.cpp"))
        if ours and theirs:
            found.append((f"{kind}: times llama.cpp", want, theirs / ours))
        if share := resident.median(rows, "outsize", kind, "share"):
            found.append((f"{kind}: share of the memory rate, end to end", WANTED_SHARE, share))
    ours, theirs = (resident.median(rows, engine, "bf16", "token_s") for engine in ("outsize", "transformers"))
    if ours and theirs:
        found.append(("bf16: times transformers", WANTED_TRANSFORMERS, theirs / ours))
    return found


if __name__ == "__main__":
    sys.exit(main())
