"""The budget holds: ``ram`` bounds the resident memory of the whole process, or nothing is loaded at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, write_checkpoint

import outsize
from outsize.errors import DoesNotFit

MIB = 1 << 20
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")

SCRIPT = """
import json, sys, outsize
options = json.loads(sys.argv[2])
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
before = status("VmRSS")
try:
    model = outsize.load(sys.argv[1], no_gpu=True, **options)
except outsize.DoesNotFit as error:
    print(json.dumps({"exit": error.exit_code, "grown": status("VmHWM") - before, "message": str(error)}))
    sys.exit(error.exit_code)
import torch
prompt = torch.arange(3, 3 + options["context"] - 8).repeat(options.get("batch", 1), 1)
for _ in range(2):
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
groups = model.outsize.plan.groups
print(json.dumps({
    "exit": 0, "peak": status("VmHWM"), "streamed": sum(group.streamed for group in groups), "kept": len(groups),
    "read": model.outsize.stats.bytes_read,
}))
"""


def big_model(kind: str) -> Any:
    """Some 250 MB: blocks of 30 MB and a head."""
    if kind == "encoder-decoder":
        config = transformers.T5Config(
            vocab_size=4000, d_model=512, d_kv=64, d_ff=4096, num_layers=5, num_heads=8, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.LlamaConfig(
        vocab_size=16000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=8,
        num_attention_heads=16,
        max_position_embeddings=2048,
        dtype=getattr(torch, kind),
    )
    return transformers.LlamaForCausalLM(config).to(config.dtype)


@pytest.fixture(scope="module", params=["bfloat16", "float16", "encoder-decoder"])
def big(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("big"), big_model(request.param))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), ARCHITECTURES["llama"].make_model())


def least(folder: Path, **options: Any) -> int:
    """The smallest budget that a plan fits into."""
    plan = outsize.plan(str(folder), weights="native", ram=1 * MIB, no_gpu=True, **options)
    assert not plan.fits
    return plan.usage["ram"].total_bytes


def run(folder: Path, group: Path | None = None, **options: Any) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(options)]
    if group is not None:  # the shell joins the group before it becomes the command
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
    usual = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # threads take memory too
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=usual)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_the_whole_process_stays_within_the_budget(big: Path) -> None:
    budget = least(big, context=128) + 40 * MIB
    code, said = run(big, ram=budget, context=128)
    assert code == 0
    assert said["streamed"] > 0
    assert said["peak"] <= budget


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 8])
def test_a_long_prompt_and_a_batch_stay_within_the_budget(big: Path, batch: int) -> None:
    budget = least(big, context=512, batch=batch) + 40 * MIB
    code, said = run(big, ram=budget, context=512, batch=batch)
    assert code == 0
    assert said["peak"] <= budget


@pytest.mark.slow
def test_a_memory_group_of_the_budgets_size_suffices(big: Path) -> None:
    budget = least(big, context=64) + 8 * MIB
    with memory_group(budget) as group:
        code, said = run(big, group, ram=budget, context=64)
    assert code == 0, said
    assert said["streamed"] > 0


def test_what_does_not_fit_is_refused_before_anything_is_loaded(small: Path) -> None:
    least(small, context=64)  # the model is known by then: torch is not needed to say no
    code, said = run(small, ram=100 * MIB, context=64)
    assert (code, said["exit"]) == (3, 3)
    assert "need" in said["message"]
    assert said["grown"] < 64 * MIB


def test_more_than_was_planned_for_is_refused_before_it_is_computed(small: Path) -> None:
    budget = least(small, context=32) + 1 * MIB
    with outsize.load(small, no_gpu=True, ram=budget, context=32) as model:
        model.generate(torch.ones((1, 8), dtype=torch.long), max_new_tokens=4, do_sample=False)
        sweeps = model.outsize.stats.sweeps
        with pytest.raises(DoesNotFit, match=r"3000 sequences of 32 tokens .* context=32 and batch=3000"):
            model(torch.ones((3000, 32), dtype=torch.long))
        assert model.outsize.stats.bytes_read < 1 * MIB
        assert model.outsize.stats.sweeps <= sweeps + 1


def test_more_than_was_planned_for_is_computed_where_there_is_room(small: Path) -> None:
    with outsize.load(small, no_gpu=True, ram=least(small, context=32) + 64 * MIB, context=32) as model:
        out = model.generate(torch.ones((3, 40), dtype=torch.long), max_new_tokens=4, do_sample=False)
    assert out.shape[0] == 3


def test_the_ring_is_what_the_plan_says(small: Path) -> None:
    with outsize.load(small, no_gpu=True, weight_limits={"ram": 0}, context=32) as model:
        plan = model.outsize.plan
        stream = model.outsize._sweep.stream
        assert plan.ring_slots >= 2
        assert stream._slots == plan.ring_slots
        assert all(memory.nbytes <= plan.ring_slot_bytes for memory in stream._free)
        assert plan.usage["ram"].ring_bytes == plan.ring_slots * plan.ring_slot_bytes


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A memory cgroup of our own, v1 or v2. Skips the test without the right to make one."""
    first = (V1 / "memory.limit_in_bytes").exists()
    group = (V1 if first else V2) / f"outsize-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    except OSError:
        if group.is_dir():
            group.rmdir()
        pytest.skip("no right to make a memory cgroup")
    try:
        yield group
    finally:
        gone = False
        for _ in range(100):
            try:
                group.rmdir()
                gone = True
            except OSError:
                time.sleep(0.05)
            if gone:
                break
