"""A dataset by accelerate's disk offload, batch after batch; with ``--harness`` scored by the harness' ``hf`` backend.

lm-evaluation-harness gets the model that accelerate has placed, and token ids instead of texts.
"""

from __future__ import annotations

import tempfile
from typing import Any

from dataset_requests import Span, arguments, prompts, report
from from_transformers import import_everything


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    parser = arguments(__doc__)
    parser.add_argument("--cpu-bytes", type=int, required=True, help="most bytes of weights that it may keep in RAM")
    parser.add_argument("--harness", action="store_true")
    options = parser.parse_args()
    import accelerate
    import torch
    from transformers import AutoModelForCausalLM

    if options.harness:
        import lm_eval
        import lm_eval.models.huggingface
    torch.set_num_threads(options.threads)
    import_everything(options.model)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        span = Span.begin()
        model = AutoModelForCausalLM.from_pretrained(
            options.model,
            dtype=torch.bfloat16,
            device_map="auto",
            max_memory={"cpu": options.cpu_bytes},
            offload_folder=folder,
        )
        # torch 2.13 copies the head once per sequence where its input is a slice: more than the limit holds. outsize
        # lays the input out, and so does this: weights are to be compared, not that.
        model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
        model(input_ids=torch.tensor([[5]]), use_cache=False)
        load = span.end()
        count = options.measured or options.prompts
        made = prompts(model.config.vocab_size, options.prompts, options.prompt_tokens, options.shared)[:count]
        new = options.measured_tokens or options.new_tokens
        model.generation_config.eos_token_id = None
        span = Span.begin()
        logprobs: list[float] = []
        if options.harness:
            logprobs = harness(model, made, options.batch)
        else:
            for start in range(0, count, options.batch):
                part = made[start : start + options.batch]
                if options.task == "score":
                    logprobs += score(model, part)
                else:
                    generate(model, part, new)
        work = span.end()
        name, version = (
            ("lm_eval hf", lm_eval.__version__) if options.harness else ("accelerate", accelerate.__version__)
        )
        print(
            report(
                name,
                version,
                load,
                work,
                computed=count,
                new_tokens=new if options.task == "generate" else 0,
                batch=options.batch,
                logprobs=logprobs[:32],
            )
        )


def score(model: Any, part: list[tuple[list[int], list[int]]]) -> list[float]:
    """Log-probabilities of the continuations, right-padded, logits in full as the model gives them."""
    import torch

    longest = max(len(p) + len(c) - 1 for p, c in part)
    ids = torch.zeros(len(part), longest, dtype=torch.long)
    for row, (p, c) in enumerate(part):
        ids[row, : len(p) + len(c) - 1] = torch.tensor([*p, *c[:-1]])
    logits = model(input_ids=ids, use_cache=False).logits
    found = []
    for row, (p, c) in enumerate(part):
        logprobs = torch.log_softmax(logits[row, len(p) - 1 : len(p) - 1 + len(c)].float(), dim=-1)
        found.append(float(logprobs[range(len(c)), c].sum()))
    return found


def generate(model: Any, part: list[tuple[list[int], list[int]]], new_tokens: int) -> None:
    """Exactly so many tokens, prompts padded on the left."""
    import torch

    longest = max(len(p) for p, _ in part)
    ids = torch.ones(len(part), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (p, _) in enumerate(part):
        ids[row, longest - len(p) :] = torch.tensor(p)
        mask[row, longest - len(p) :] = 1
    model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, pad_token_id=1)


def harness(model: Any, made: list[tuple[list[int], list[int]]], batch: int) -> list[float]:
    """Through the harness' own batching."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="3")),
        eos_token="2",
        pad_token="1",
        unk_token="3",
    )
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    asked = [((" ".join(map(str, p)), " ".join(map(str, c))), p, c) for p, c in made]
    return [logprob for logprob, _ in backend._loglikelihood_tokens(asked, disable_tqdm=True)]


if __name__ == "__main__":
    main()
