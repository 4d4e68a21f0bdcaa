"""transformers alone, all weights in RAM: what a machine with enough of it would do."""

from __future__ import annotations

from from_transformers import generate, import_everything
from measure import Clock, arguments


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    options = arguments(__doc__).parse_args()
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    import_everything(options.model)
    clock = Clock()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    if options.warm:
        generate(model, Clock(), 2)
    clock.ready()
    generate(model, clock, options.new_tokens, options.prompt_tokens)
    print(clock.report("transformers", transformers.__version__))


if __name__ == "__main__":
    main()
