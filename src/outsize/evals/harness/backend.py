"""The harness' view of a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import postprocess_generated_text, resolve_max_length

from outsize.api import folder_in
from outsize.engine.request import GenerateRequest, ScoreRequest, ScoreResult
from outsize.errors import OutsizeError, UsageError
from outsize.evals import dataset_run
from outsize.evals.dataset_run import DatasetRunner
from outsize.evals.harness.deduplication import Deduplicated
from outsize.evals.harness.generation_settings import DEFAULT_NEW_TOKENS, request_of, seeded
from outsize.evals.harness.tokens import Texts
from outsize.evals.requests import Encoder
from outsize.models.survey_cache import folder_spec
from outsize.options import LoadOptions, Size
from outsize.progress import bars

log = logging.getLogger("lm_eval.outsize")

# Resident once torch and transformers are imported, and nothing else: plans count that much for the process by then.
PLANNED_RESIDENT = 250 << 20
DEFAULT_TOP_K = 50  # what transformers draws from where neither the task nor the model says


@dataclass(slots=True)
class Effort(dataset_run.Effort):
    """What all requests took so far. ``requests``: that the model computed, each once."""

    requests: int = 0


@register_model("outsize")
class OutsizeLM(TemplateLM):  # type: ignore[misc]
    """A model for the harness: log-likelihoods, rolling log-likelihoods, texts; chat templates.

    All requests of a kind are one dataset: planned, loaded, computed together and closed, so that each kind has the
    memory that makes it fastest, and the harness' metrics have it back.

    ``pretrained``: as MODEL everywhere. ``max_length``: tokens of a sequence, by default as many as the harness' ``hf``
    backend takes. ``prefix_token_id``: what stands for an empty context. ``seed``: of texts that are drawn. The other
    keywords are those of ``outsize.load``; ``batch`` follows from the requests where it is None. Of the keywords that
    the harness adds by itself, ``device="cpu"`` means ``no_gpu``; its batch sizes mean nothing here. ``verbose``: says
    on stderr where the layers lie and what is predicted.
    """

    def __init__(  # noqa: PLR0913  the harness' own keywords, and those of load
        self,
        pretrained: str,
        *,
        weights: str = "native",
        revision: str | None = None,
        max_length: int | None = None,
        batch: int | None = None,
        ram: Size | None = None,
        gpu_memory: Size | Sequence[Size] | None = None,
        no_gpu: bool = False,
        weight_limits: Mapping[str, Size] | str | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        seed: int = 0,
        verbose: bool = False,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        options = LoadOptions(
            weights=weights,
            batch=batch,
            ram=ram,
            gpu_memory=gpu_memory,
            no_gpu=no_gpu or device == "cpu",
            weight_limits=weight_limits,
            revision=revision,
        )
        self._seed = seed
        self._chat_template_args = dict(chat_template_args or {})
        with bars(quiet=not verbose) as bar:
            self.folder = folder_in(str(pretrained), options, bar("downloading"), bar("converting"))
        assert self.folder.path is not None  # folder_in has seen to it
        self.spec = folder_spec(self.folder)
        self._runner = DatasetRunner(self.folder, options, verbose=verbose, others=_resident_beside_plans)
        self.effort = Effort()
        from outsize.models.tracing import read_config
        from outsize.models.tracing.pretrained import load_tokenizer

        config = read_config(self.folder.config)
        self.tokenizer = load_tokenizer(self.folder.path)
        both = self.spec.encoder_decoder
        self.backend = "seq2seq" if both else "causal"
        encoder = Encoder(self.tokenizer, config, encoder_decoder=both, prefix=prefix_token_id)
        self._texts = Texts(encoder, self._most(max_length, resolve_max_length(config, self.tokenizer)))

    @property
    def max_length(self) -> int:
        return self._texts.most

    @property
    def max_gen_toks(self) -> int:
        return DEFAULT_NEW_TOKENS

    @property
    def eot_token_id(self) -> int | None:
        token: int | None = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int | None:
        return self._texts.encoder.prefix

    @property
    def tokenizer_name(self) -> str:
        """What tells the prepared requests of one tokenizer from those of another."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            return self._texts.encoder.encode(string)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text. A template that refuses a system role gets the conversation without it.

        Raises UsageError for a tokenizer without a template.
        """
        from jinja2 import TemplateError

        if self.tokenizer.chat_template is None:
            raise UsageError(f"the tokenizer of {self.spec.id} has no chat template")
        try:
            return self._conversation(chat_history, add_generation_prompt)
        except TemplateError as error:
            log.warning("the chat template refuses the conversation (%s); without its system role:", error)
            others = [message for message in chat_history if message["role"] != "system"]
            return self._conversation(others, add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation: the sum of its log-probabilities, and whether each token was the likeliest."""
        asked = understood(requests, lambda one: [self._texts.pair(*one.args)])
        return self._answers(requests, asked, "loglikelihood", likelihood)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The sum of the log-probabilities of each whole text, in windows where the model takes less."""
        asked = understood(requests, lambda one: self._texts.windows(one.args[0]))
        return self._answers(
            requests, asked, "loglikelihood_rolling", lambda number, found: likelihood(number, found)[0]
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A text after each context, up to a stop string.

        Raises UsageError for settings that outsize does not have.
        """
        eos = None if self.eot_token_id is None else self.tokenizer.decode([self.eot_token_id])
        top_p, top_k = self._sampling()

        def understand(one: Any) -> GenerateRequest:
            request = request_of(one.args[1], eos, top_p, top_k)
            return replace(request, prompt=self._texts.prompt(one.args[0], request.max_new_tokens))

        asked = [[request] for request in seeded(understood(requests, understand), self._seed)]

        def text(number: int, found: list[Any]) -> Any:
            return postprocess_generated_text(found[0].text, list(asked[number][0].stop), think_end_token=None)

        return self._answers(requests, asked, "generate_until", text)

    def get_model_info(self) -> dict[str, Any]:
        return {"model_num_parameters": self.spec.parameters, "model_dtype": self.spec.dtype}

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        """``loglikelihood`` of what is in tokens already: (texts or None, context, continuation)."""
        asked = understood(requests, lambda one: [self._texts.fitting(one[1], one[2])])
        return self._answers(requests, asked, "", likelihood)

    def _answers(
        self,
        requests: Sequence[Any],
        asked: Sequence[Sequence[ScoreRequest | GenerateRequest]],
        kind: str,
        value: Callable[[int, list[Any]], Any],
    ) -> list[Any]:
        """A value for each request; the harness' cache gets it as soon as it is known."""
        questions = Deduplicated(asked)
        values = {number: value(number, []) for number, few in enumerate(asked) if not few}
        for result in self._runner.results(questions.requests, self.effort, self.tokenizer):
            for number, found in questions.take(result):
                values[number] = value(number, found)
                if kind:
                    self.cache_hook.add_partial(kind, requests[number].args, values[number])
        self.effort.requests += len(questions.requests)
        refuse(requests, questions.failed)
        return [values[number] for number in range(len(requests))]

    def _conversation(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._chat_template_args,
            )
        )

    def _most(self, asked: int | None, usual: int) -> int:
        """Tokens of a sequence. Raises UsageError for more than the model has positions."""
        positions = self.spec.max_positions
        if asked is None:
            return usual if positions is None else min(usual, positions)
        if asked < 1 or (positions is not None and asked > positions):
            raise UsageError(f"sequences of {asked} tokens", need=f"1 to {positions or 'any number of'} tokens")
        return asked

    def _sampling(self) -> tuple[float | None, int | None]:
        """``top_p`` and ``top_k`` that transformers would draw with: the model's own, and else its library's."""
        from outsize.models.tracing.pretrained import load_generation_config

        assert self.folder.path is not None  # folder_in has seen to it
        own = load_generation_config(self.folder.path)
        if own is None:
            return None, DEFAULT_TOP_K
        return own.top_p, DEFAULT_TOP_K if own.top_k is None else own.top_k


def likelihood(number: int, found: Sequence[ScoreResult]) -> tuple[float, bool]:
    """Sum over the results, whether every token was the likeliest."""
    return sum((one.logprobs[0] for one in found), 0.0), all(one.greedy[0] for one in found)


def understood(requests: Sequence[Any], understand: Callable[[Any], Any]) -> list[Any]:
    """What is asked, before anything is computed. Raises UsageError that says of which document."""
    found = []
    for one in requests:
        try:
            found.append(understand(one))
        except UsageError as error:
            what = f"{named(one)}: {error.what}"
            raise UsageError(what, need=error.need, have=error.have, remedy=error.remedy) from error
    return found


def refuse(requests: Sequence[Any], failed: Mapping[int, str]) -> None:
    """Raises OutsizeError where requests failed: no metric can be computed of what is left."""
    if failed:
        first = min(failed)
        raise OutsizeError(
            f"{len(failed)} of {len(requests)} requests failed; the first, {named(requests[first])}: {failed[first]}",
            remedy="again with the harness' cache (--use-cache DIR), which keeps the others",
        )


def named(one: Any) -> str:
    task, document = getattr(one, "task_name", None), getattr(one, "doc_id", None)
    return "a request" if task is None else f"document {document} of {task}"


def _resident_beside_plans() -> int:
    """Resident bytes (VmRSS) of the harness, its libraries and documents, which no plan counts."""
    with open("/proc/self/status", encoding="ascii") as status:
        resident = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:")), 0)
    return max(resident - PLANNED_RESIDENT, 0)
