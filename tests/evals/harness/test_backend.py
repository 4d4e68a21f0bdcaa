from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from cli.harness_models import ROOT, TASKS, TEMPLATE, bundled, poisoned, small

from outsize.errors import DoesNotFit, OutsizeError, UsageError

pytestmark = [
    pytest.mark.xdist_group("harness"),  # one process: its imports and results are made once
    pytest.mark.usefixtures("shared_surveys"),
]

LIMIT = 8
NAMES = ["words_choice", "words_guess", "words_answer", "words_text"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def harness() -> Iterator[None]:
    """Tasks name their data from the repository's root; describing this machine takes the harness seconds."""
    import datasets

    datasets.disable_progress_bars()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield
    torch.set_num_threads(threads)


def evaluated(model: Any, names: list[Any], **more: Any) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=TASKS, include_defaults=False)
    more = {"limit": LIMIT, "bootstrap_iters": 0, **more}
    return lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, **more)


def ours(folder: Path, **more: Any) -> Any:
    from outsize.evals.harness import OutsizeLM

    return OutsizeLM(str(folder), **{"no_gpu": True, "weight_limits": {"ram": 0}, **more})


def theirs(folder: Path, **more: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(str(folder), device="cpu", dtype="float32", batch_size=4, **more)


def request(*arguments: Any, document: int = 0) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0, ("words", document, 1))


@pytest.fixture(scope="module", params=["bundled", "bundled, cut", "t5"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Results of outsize and of the harness' hf backend, and what outsize took.

    Where texts are cut to 40 tokens, contexts lose their beginning, and whole texts come in several windows.
    """
    folder = tmp_path_factory.mktemp("models") / "model"
    model, _, cut = request.param.partition(", ")
    folder = bundled(folder) if model == "bundled" else small(folder, model)
    length = 40 if cut else None
    mine = ours(folder, max_length=length)
    # In float64 the other one's sum of many log-probabilities is not rounded once more.
    other = theirs(folder, max_length=length, softmax_dtype="float64")
    return evaluated(mine, NAMES), evaluated(other, NAMES), mine.effort


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundled one, for all tests that do not change it."""
    return ours(bundled(tmp_path_factory.mktemp("bundled") / "model"))


def metrics(results: Any) -> dict[tuple[str, str], float]:
    return {
        (task, name): value
        for task, found in results["results"].items()
        for name, value in found.items()
        if isinstance(value, float)
    }


def test_the_same_metrics(both: Any) -> None:
    mine, other = metrics(both[0]), metrics(both[1])
    assert {name for _, name in mine} >= {"acc,none", "acc_norm,none", "exact_match,word", "byte_perplexity,none"}
    assert mine == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("task", ["words_choice", "words_guess", "words_text"])
def test_the_same_log_likelihoods(both: Any, task: str) -> None:
    mine, other = (results["samples"][task] for results in both[:2])
    assert len(mine) == len(other) == LIMIT
    for here, there in zip(mine, other, strict=True):
        assert here["arguments"] == there["arguments"]
        found, wanted = (torch.tensor(flat(one["resps"]), dtype=torch.float64) for one in (here, there))
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def flat(answers: Any) -> list[float]:
    """Numbers of an answer, whether a token was the likeliest among them."""
    return [n for inner in answers for n in flat(inner)] if isinstance(answers, list | tuple) else [float(answers)]


def test_the_same_texts(both: Any) -> None:
    """The hf backend lets an encoder-decoder model go on for as many tokens more as the prompt has."""
    for here, there in zip(*(results["samples"]["words_answer"] for results in both[:2]), strict=True):
        assert there["resps"][0][0].startswith(here["resps"][0][0])
        if both[0]["config"]["model_num_parameters"] > 1_000_000:
            assert there["resps"] == here["resps"]


def test_each_kind_of_requests_is_one_dataset(both: Any) -> None:
    """Log-likelihoods and texts take a sweep each, answers one for each of 24 tokens at most."""
    assert 3 <= both[2].sweeps <= 2 + 24
    assert both[2].requests >= 2 * 3 * LIMIT
    assert both[2].predicted_seconds > 0


def test_conversations(tmp_path: Path) -> None:
    folder = bundled(tmp_path / "model", chat_template=TEMPLATE)
    more = {
        "apply_chat_template": True,
        "fewshot_as_multiturn": True,
        "system_instruction": "Be brief.",
        "num_fewshot": 2,
        "limit": 3,
    }
    mine = evaluated(ours(folder), ["words_choice"], **more)["samples"]["words_choice"]
    other = evaluated(theirs(folder, prefix_token_id=2), ["words_choice"], **more)["samples"]["words_choice"]
    assert [one["arguments"] for one in mine] == [one["arguments"] for one in other]
    assert mine[0]["arguments"][0][0].startswith("<system>Be brief.\n<user>")
    assert mine[0]["arguments"][0][0].count("<user>") == 3
    assert flat([one["resps"] for one in mine]) == pytest.approx(flat([o["resps"] for o in other]), abs=TOLERANCE)


def test_a_template_that_knows_no_system_role(tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    model = ours(bundled(tmp_path / "model", chat_template=refusing))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    assert model.apply_chat_template(messages) == "<user>a\n<assistant>"
    assert model.apply_chat_template(messages, add_generation_prompt=False) == "<user>a"
    assert model.chat_template(True) == refusing


def test_a_tokenizer_without_a_template(model: Any) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        model.apply_chat_template([{"role": "user", "content": "a"}])


def test_what_fails_fails_alone_and_what_was_computed_is_kept(tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    folder = poisoned(tmp_path / "model", token=tokens("~")[0])
    requests = [request(context, " B\n", document=i) for i, context in enumerate(["a ->", "~ ->", "b ->"])]
    cached = CachingLM(ours(folder), str(tmp_path / "cache.db"))
    with pytest.raises(OutsizeError, match=r"1 of 3 .* document 1 of words: .* not finite"):
        cached.loglikelihood(requests)
    again = ours(folder)
    kept = CachingLM(again, str(tmp_path / "cache.db"))
    assert len(kept.loglikelihood([requests[0], requests[2]])) == 2
    assert again.effort.requests == 0
    cached.dbdict.close()
    kept.dbdict.close()


def tokens(text: str) -> list[int]:
    from outsize.models.tracing.pretrained import load_tokenizer

    return list(load_tokenizer(ROOT / "src" / "outsize" / "demo_model").encode(text))


@pytest.mark.parametrize(
    ("kind", "arguments", "word"),
    [
        ("loglikelihood", ("a", ""), "no tokens"),
        ("loglikelihood", ("a", "b" * 300), "300 tokens"),
        ("generate_until", ("a", {}), "max_gen_toks=128"),
        ("generate_until", ("a", {"max_gen_toks": 9, "num_beams": 4}), "num_beams=4"),
        ("generate_until", ("", {"max_gen_toks": 9}), "prompt is empty"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_computed(
    kind: str, arguments: Any, word: str, model: Any
) -> None:
    sweeps = model.effort.sweeps
    sound = ("a", " b") if kind == "loglikelihood" else ("a", {"max_gen_toks": 9})
    with pytest.raises(UsageError, match=word) as refused:
        getattr(model, kind)([request(*sound), request(*arguments, document=7)])
    assert "document 7 of words" in str(refused.value)
    assert model.effort.sweeps == sweeps


def test_the_same_draw_alone_and_in_company(model: Any) -> None:
    drawn = {"do_sample": True, "temperature": 3.0, "max_gen_toks": 8}
    alone = model.generate_until([request("cat -> CAT\ndog ->", drawn)])
    several = model.generate_until([request(p, drawn) for p in ("a ->", *["cat -> CAT\ndog ->"] * 3)])
    assert several[1] == alone[0]
    assert len(set(several[1:])) > 1


def test_the_harness_makes_it_by_name(model: Any) -> None:
    from lm_eval.api.registry import get_model

    import outsize.evals.harness

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lm_eval.models"]
    module, _, name = declared["outsize"].partition(":")
    made_by_name = get_model("outsize")
    assert made_by_name is getattr(import_module(module), name) is outsize.evals.harness.OutsizeLM
    text = f"pretrained={model.folder.path},weight_limits=ram=0,max_length=20,prefix_token_id=3"
    made = made_by_name.create_from_arg_string(text, {"batch_size": 1, "device": "cpu", "max_batch_size": None})
    assert (made.max_length, made.prefix_token_id, made.tokenizer_name[-5:]) == (20, 3, "model")
    assert made.loglikelihood([request("", "cat")]) == made._loglikelihood_tokens([(None, [3], tokens("cat"))])
    assert made.loglikelihood_rolling([request("")]) == [0.0]
    assert made.get_model_info()["model_num_parameters"] == 1_731_456


def test_a_budget_is_for_the_harness_too(model: Any) -> None:
    with pytest.raises(UsageError, match="1 to 256 tokens"):
        ours(model.folder.path, max_length=257)
    with pytest.raises(DoesNotFit, match=r"beside the harness, which holds .* GiB; .* more of ram for the harness"):
        ours(model.folder.path, ram="300MiB").loglikelihood([request("a", "b")])
