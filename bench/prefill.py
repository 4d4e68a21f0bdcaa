"""Prefill of 512 tokens with all weights in memory: tokens per second against llama.cpp and transformers, type by type.

    python bench/prefill.py                a 7B shape in bfloat16, int8 and int4; some 40 GB of checkpoints

Beside each figure stands the physical limit: two operations a parameter and token, at the rate of a large bfloat16
matmul of torch in the same run. The table goes to stdout, and the last line there is a JSON object.
"""

from __future__ import annotations

import json
import sys

import physical
import report
import resident
from report import machine

PROMPT_TOKENS = 512
WANTED = 1.2  # times llama.cpp, each type


def main() -> int:
    """Command line; 1 if an engine failed."""
    options = resident.arguments(__doc__).parse_args()
    rows = resident.measure(resident.lineup(options, 1, "--prompt-tokens", str(PROMPT_TOKENS)), options.rounds)
    rate = physical.matmul_rate()
    operations = 2 * resident.block_parameters(options.shape) * PROMPT_TOKENS
    print(f"a bfloat16 matmul of torch: {rate / 1e9:.0f} GFLOP/s")
    print(f"{'engine':14}{'type':6}{'tokens/s':>9}{'seconds':>9}{'GFLOP/s':>9}{'share':>7}")
    for row in rows:
        if row["failure"]:
            print(f"{row['engine']:14}{row['kind']:6} failed: {row['failure']}")
            continue
        seconds = row["first_token_s"]
        row["share"] = operations / seconds / rate
        print(
            f"{row['engine']:14}{row['kind']:6}{PROMPT_TOKENS / seconds:9.1f}{seconds:9.2f}"
            f"{operations / seconds / 1e9:9.0f}{row['share']:7.0%}"
        )
    checks = []
    for kind in resident.TYPES:
        ours, theirs = (resident.median(rows, engine, kind, "first_token_s") for engine in ("outsize", "llama.cpp"))
        if ours and theirs:
            checks.append({"what": f"{kind}: times llama.cpp", "want": WANTED, "have": theirs / ours})
    for row in checks:
        met = "met   " if row["have"] >= row["want"] else "MISSED"
        print(f"{met} {row['what']}: {row['have']:.2f} (wanted >= {row['want']:.2f})")
    result = {"schema": 1, "benchmark": "prefill", "shape": options.shape, "machine": machine(), "rows": rows}
    result |= {"checks": checks, "matmul_flops": rate}
    if options.out is not None:
        report.keep(result, options.out)
    print(json.dumps(result))
    return 1 if any(row["failure"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
