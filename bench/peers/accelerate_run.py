"""accelerate's disk offload: ``device_map="auto"`` with a CPU limit, the rest from the checkpoint's files."""

from __future__ import annotations

import tempfile

from from_transformers import generate, import_everything
from measure import Clock, arguments


def main() -> None:
    """Command line; one JSON line at the end of stdout."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--cpu-bytes", type=int, required=True, help="most bytes of weights that accelerate may keep in RAM"
    )
    options = parser.parse_args()
    import accelerate
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    import_everything(options.model)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        model = AutoModelForCausalLM.from_pretrained(
            options.model,
            dtype=torch.bfloat16,
            device_map="auto",
            max_memory={"cpu": options.cpu_bytes},
            offload_folder=folder,
        )
        clock.ready()
        generate(model, clock, options.new_tokens, made_up=options.forced)
        homes = list(model.hf_device_map.values())
        print(
            clock.report("accelerate", accelerate.__version__, modules_on_disk=homes.count("disk"), modules=len(homes))
        )


if __name__ == "__main__":
    main()
