"""Ask the bundled model held-out prompts: `python scripts/measure_bundled.py --seed 1 --per-task 50`.

Greedy `generate` of transformers, in bfloat16; an answer counts when it is right to the last character,
newline included. The last line of stdout is one JSON object with the accuracy per task; wrong answers go to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from fewshot_tasks import TASKS, held_out_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

BUNDLED = Path(__file__).parents[1] / "src" / "outsize" / "demo_model"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the bundled model.")
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--seed", type=int, default=1, help="another seed, other prompts")
    parser.add_argument("--per-task", type=int, default=50)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    right = {task.name: 0 for task in TASKS}
    asked = list(held_out_prompts(args.seed, args.per_task))
    for prompts in (asked[start : start + 64] for start in range(0, len(asked), 64)):
        batch = tokenizer([prompt.text for prompt in prompts], return_tensors="pt", padding=True)
        said = model.generate(**batch)[:, batch["input_ids"].shape[1] :]
        for prompt, text in zip(prompts, tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
            right[prompt.task] += text == prompt.answer
            if text != prompt.answer:
                print(f"{prompt.text!r}: {text!r}, not {prompt.answer!r}", file=sys.stderr)
    accuracy = {name: hits / args.per_task for name, hits in right.items()}
    print(json.dumps({"prompts": len(TASKS) * args.per_task, "all": sum(accuracy.values()) / len(TASKS), **accuracy}))


if __name__ == "__main__":
    main()
