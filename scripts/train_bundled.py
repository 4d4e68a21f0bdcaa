"""Train the bundled model: `python scripts/train_bundled.py --compile --out src/outsize/demo_model`.

A Llama of eight thin blocks learns the tasks of `fewshot_tasks.py` from generated prompts, on one CPU thread, in well
under an hour. Written to `--out`: weights (bfloat16), config, tokenizer, and `heldout.jsonl`, prompts that training
cannot have seen, with their answers. Progress goes to stderr; the last line of stdout is one JSON object with the
accuracy per task, of the stored bfloat16 weights.

How the little time is used:

- the first 70 % of the steps train every other block only; the rest then join as identities (their output projections
  are zero), at no loss;
- matrices learn by Muon, the rest by AdamW; the rate is held, then falls linearly to nothing;
- the loss counts answers alone: none of the first line's, where the task cannot be known yet, and less of the second's;
- the forward pass below is Llama's, written for bfloat16 on a CPU and compiled once for all blocks. What is measured at
  the end is transformers' own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from fewshot_tasks import ARROW, TASKS, Prompt, held_out_prompts, training_prompt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

PAD, UNKNOWN, NEWLINE = 0, 1, 2  # token ids; a newline ends an answer
HELD_OUT_SEED, HELD_OUT_PER_TASK = 20, 25
BF16 = torch.bfloat16


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character (printable ASCII and newline), and one for the arrow; nothing is normalised."""
    tokens = ["<pad>", "<unk>", "\n", ARROW, *(chr(code) for code in range(32, 127))]
    raw = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{ARROW}|[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_model(vocabulary: int, blocks: int, width: int, inner: int) -> LlamaForCausalLM:
    """A Llama with heads of 32, and matrices that start as Muon likes them: output projections at zero."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=NEWLINE,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            elif parameter.ndim == 2:
                parameter.normal_(std=0.3 if "embed" in name else parameter.shape[1] ** -0.5)
    return model


# --- prompts as tokens


def encode(prompt: Prompt, ids: dict[str, int]) -> tuple[list[int], list[float]]:
    """A solved prompt's token ids, and what each counts in the loss: answers 1, the second line's 0.3, all else 0."""
    tokens: list[int] = []
    weights: list[float] = []
    for number, line in enumerate(prompt.lines):
        item, answer = line.split(ARROW)
        shown, said = [*map(ids.__getitem__, item), ids[ARROW]], [*map(ids.__getitem__, answer), NEWLINE]
        tokens += shown + said
        weights += [0.0] * len(shown) + [(0.0, 0.3, 1.0)[min(number, 2)]] * len(said)
    return tokens, weights


def batches(random: Random, ids: dict[str, int], rows: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, weights), each [rows, length]: one prompt a row, filled up with padding that counts nothing."""
    while True:
        tokens, weights = torch.full((rows, length), PAD), torch.zeros(rows, length)
        for row in range(rows):
            prompt, weight = encode(training_prompt(random, length), ids)
            tokens[row, : len(prompt)], weights[row, : len(prompt)] = torch.tensor(prompt), torch.tensor(weight)
        yield tokens, weights


# --- Llama's forward pass, for training


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight).to(BF16)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


def _block(x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """One block, x [rows, length, width]; `weights` by their short names (`q_proj`, ...)."""
    w = {name: weight if weight.ndim == 1 else weight.to(BF16).mT for name, weight in weights.items()}
    rows, length, width = x.shape
    normed = _norm(x, w["input_layernorm"])
    split = (normed @ torch.cat((w["q_proj"], w["k_proj"], w["v_proj"]), -1)).chunk(3, -1)
    q, k, v = (part.view(rows, length, -1, 32).transpose(1, 2) for part in split)  # [rows, heads, length, 32]
    q, k = _rotate(q, *rotation) * 32**-0.5, _rotate(k, *rotation)
    q, k, v = (part.reshape(-1, length, 32) for part in (q, k, v))
    scores = torch.softmax(torch.bmm(q, k.mT).float() + mask, -1).to(BF16)
    heads = torch.bmm(scores, v).view(rows, -1, length, 32).transpose(1, 2).reshape(rows, length, width)
    x = x + heads @ w["o_proj"]
    gate_up = _norm(x, w["post_attention_layernorm"]) @ torch.cat((w["gate_proj"], w["up_proj"]), -1)
    gate, up = gate_up.chunk(2, -1)
    return x + (functional.silu(gate) * up) @ w["down_proj"]


def forward_loss(
    model: LlamaForCausalLM, block: Callable[..., Tensor], layers: list[int], tokens: Tensor, weights: Tensor
) -> Tensor:
    """Mean loss of the weighted targets, through those layers only."""
    length = tokens.shape[1] - 1
    base: Any = model.model
    rotation = tuple(part.to(BF16) for part in base.rotary_emb(torch.empty(0), torch.arange(length)[None]))
    mask = torch.full((length, length), float("-inf")).triu(1)
    x = base.embed_tokens(tokens[:, :-1]).to(BF16)
    for layer in (base.layers[index] for index in layers):
        x = block(x, rotation, mask, {name.split(".")[-2]: weight for name, weight in layer.named_parameters()})
    wanted = weights[:, 1:] > 0
    logits = _norm(x[wanted], base.norm.weight).float() @ model.lm_head.weight.mT  # [answer tokens, vocabulary]
    losses = functional.cross_entropy(logits, tokens[:, 1:][wanted], reduction="none")
    share = weights[:, 1:][wanted]
    return (losses * share).sum() / share.sum()


# --- what it can do


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, prompts: list[Prompt], ids: dict[str, int]) -> dict[str, float]:
    """Share of prompts per task, and in all, whose whole answer greedy decoding gives.

    Greedy decoding gives the answer exactly when each of its tokens is the likeliest after the ones before it: one pass
    shows that.
    """
    right: dict[str, list[bool]] = {task.name: [] for task in TASKS}
    for start in range(0, len(prompts), 50):
        part = [(prompt, encode(prompt, ids)[0]) for prompt in prompts[start : start + 50]]
        tokens = torch.full((len(part), max(len(ids_) for _, ids_ in part)), PAD)
        for row, (_, ids_) in enumerate(part):
            tokens[row, : len(ids_)] = torch.tensor(ids_)
        said = model(input_ids=tokens, use_cache=False).logits.argmax(-1)
        for row, (prompt, ids_) in enumerate(part):
            answer = slice(len(ids_) - len(prompt.answer), len(ids_))
            hits = said[row, answer.start - 1 : answer.stop - 1] == tokens[row, answer]
            right[prompt.task].append(bool(hits.all()))
    result = {name: sum(hits) / max(1, len(hits)) for name, hits in right.items()}
    return {"all": sum(map(sum, right.values())) / len(prompts), **result}


def stored(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model as it is stored: rounded to bfloat16."""
    twin: LlamaForCausalLM = AutoModelForCausalLM.from_config(model.config, dtype=BF16)  # rotary tables stay float32
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], out: Path) -> None:
    """Write the model's folder."""
    out.mkdir(parents=True, exist_ok=True)
    twin = stored(model)
    twin.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=24, eos_token_id=NEWLINE, pad_token_id=PAD
    )
    twin.save_pretrained(out)
    tokenizer.save_pretrained(out)
    with (out / "heldout.jsonl").open("w") as file:
        for number, prompt in enumerate(prompts):
            record = {"id": number, "task": prompt.task, "shots": prompt.shots}
            file.write(json.dumps({**record, "prompt": prompt.text, "answer": prompt.answer}) + "\n")


# --- training


def rate_at(progress: float) -> float:
    """The learning rate's factor: held for 55 % of the steps, then down to nothing."""
    return min(1.0, (1.0 - progress) / 0.45)


def train(
    model: LlamaForCausalLM, args: argparse.Namespace, ids: dict[str, int], report: Callable[[int, float], None]
) -> None:
    """Train in place; `report(step, loss)` after every `--report` steps."""
    body = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if ".layers." not in name or p.ndim == 1]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(body, lr=args.rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    count = len(model.model.layers)
    block = torch.compile(_block, dynamic=False) if args.compile else _block
    random, grow = Random(args.seed), int(args.steps * args.grow_at)
    early = batches(random, ids, rows=args.rows, length=args.length + 1)
    late = batches(random, ids, rows=args.late_rows, length=args.late_length + 1)
    recent = 0.0
    for step in range(args.steps):
        layers = list(range(0, count, 2)) if step < grow else list(range(count))
        tokens, weights = next(early if step < grow else late)
        loss = forward_loss(model, block, layers, tokens, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(rest, 1.0)
        warm = min(1.0, (step + 1) / 100)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = args.rate * warm * rate_at(step / args.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent += loss.item()
        if (step + 1) % args.report == 0 or step + 1 == args.steps:
            report(step + 1, recent / args.report)
            recent = 0.0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument("--rate", type=float, default=5e-3, help="learning rate")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--inner", type=int, default=384)
    parser.add_argument("--rows", type=int, default=40, help="prompts a step while half of the blocks learn")
    parser.add_argument("--length", type=int, default=64, help="longest prompt, in tokens, meanwhile")
    parser.add_argument("--late-rows", type=int, default=24)
    parser.add_argument("--late-length", type=int, default=96)
    parser.add_argument("--grow-at", type=float, default=0.7, help="share of the steps before all blocks join")
    parser.add_argument("--report", type=int, default=100, help="steps between two measurements")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks: twice as fast; needs a C++ compiler"
    )
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    started, tokenizer = time.monotonic(), make_tokenizer()
    ids = tokenizer.get_vocab()
    model = make_model(len(tokenizer), args.blocks, args.width, args.inner)
    prompts = list(held_out_prompts(HELD_OUT_SEED, HELD_OUT_PER_TASK))

    def report(step: int, loss: float) -> None:
        if step / args.steps > args.grow_at:
            save(model, tokenizer, prompts, args.out)
        scores = accuracy(stored(model), prompts, ids)
        tasks = " ".join(f"{name} {100 * score:.0f}" for name, score in scores.items())
        head = f"step {step}/{args.steps}  {time.monotonic() - started:.0f} s  loss {loss:.4f}"
        print(f"{head}  right %: {tasks}", file=sys.stderr, flush=True)

    train(model, args, ids, report)
    save(model, tokenizer, prompts, args.out)
    written = AutoModelForCausalLM.from_pretrained(args.out, dtype=BF16).eval()
    ids = AutoTokenizer.from_pretrained(args.out).get_vocab()
    result = {
        "steps": args.steps,
        "seed": args.seed,
        "seconds": round(time.monotonic() - started),
        "cpu_seconds": round(time.process_time()),
        "parameters": sum(parameter.numel() for parameter in written.parameters()),
        "weight_bytes": (args.out / "model.safetensors").stat().st_size,
        "prompts": len(prompts),
        "accuracy": accuracy(written, prompts, ids),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
