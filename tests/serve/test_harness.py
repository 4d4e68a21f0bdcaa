"""lm-evaluation-harness through the server: the figures of outsize's own backend, to the last digit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_models import TEMPLATE
from cli.harness_models import ROOT, TASKS, bundled
from serve.conftest import serving

pytest.importorskip("tenacity", reason="the harness' clients need lm_eval[api]")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("harness")]
CHOICES = ["words_choice", "words_answer", "words_guess"]


def evaluate(model: str, arguments: Mapping[str, Any], tasks: list[str], **more: Any) -> dict[str, Any]:
    """The figures of each task."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    import outsize.evals.harness  # noqa: F401  registers the backend

    manager = TaskManager(include_path=[str(TASKS)], include_defaults=False)
    found = evaluator.simple_evaluate(
        model=model, model_args=dict(arguments), tasks=tasks, task_manager=manager, limit=8, bootstrap_iters=0, **more
    )
    return {name: {k: v for k, v in found["results"][name].items() if "," in k} for name in tasks}


def test_the_harness_finds_the_same_through_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    folder = bundled(tmp_path / "model", chat_template=TEMPLATE)
    own = evaluate("outsize", {"pretrained": str(folder), "no_gpu": True}, CHOICES)
    with serving(folder, tmp_path / "cache") as (url, _):
        asked = {"model": "demo", "tokenizer": str(folder), "max_length": 256, "tokenizer_backend": "huggingface"}
        several = {"num_concurrent": 4, "max_retries": 1, **asked}
        served = evaluate("local-completions", {"base_url": f"{url}/v1/completions", **several}, CHOICES)
        chat = evaluate(
            "local-chat-completions",
            {"base_url": f"{url}/v1/chat/completions", "model": "demo", "max_retries": 1, "num_concurrent": 4},
            ["words_answer"],
            apply_chat_template=True,
        )
    assert served == own
    assert chat["words_answer"].keys() == own["words_answer"].keys()
