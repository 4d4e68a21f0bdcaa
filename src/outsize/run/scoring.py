"""Log-likelihoods of continuations, of a whole dataset in as few sweeps as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from outsize.facts.model import ModelSpec
from outsize.planning.microbatch import Burden, Room, Shape, burden_of, logit_rows, pack, room_of
from outsize.planning.plan import Plan
from outsize.planning.prefixes import Prefix, find_prefixes
from outsize.run.dataset import ScoreRequest, ScoreResult
from outsize.run.grafts import can_graft, graft, lend, moves_with_length
from outsize.run.logits import Head, Pick, likelihoods
from outsize.run.scheduler import Job, Scheduler
from outsize.run.sweep import Sweep

MOST_LENT = 16  # sequences that share a prefix which is dropped behind them; more keep it until all are done
MOST_SCORED = 512  # positions of a micro-batch of several sequences


@dataclass(frozen=True, slots=True)
class Want:
    """Tokens of one continuation, and the position in the row whose logits say how likely the first of them is."""

    request: int
    choice: int
    start: int
    tokens: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Row:
    """A sequence to compute: the decoder's input, the encoder's where there is one, and all that is wanted of it."""

    tokens: tuple[int, ...]
    context: tuple[int, ...] = ()
    wants: list[Want] = field(default_factory=list)

    @property
    def positions(self) -> list[int]:
        """Positions whose logits are wanted, ascending, each once."""
        return sorted({p for w in self.wants for p in range(w.start, w.start + len(w.tokens))})

    @property
    def length(self) -> int:
        """Tokens of the longer of its two sequences."""
        return max(len(self.tokens), len(self.context))


@dataclass(frozen=True, slots=True)
class Stem:
    """What rows share: its cache and length; for each row its place among the stem's, None where there is one."""

    cache: Any
    length: int
    places: tuple[int, ...] | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """A micro-batch: its rows, behind a stem. A stem's own has ``sharing``, the micro-batches that are to come."""

    rows: Sequence[Row]
    shape: Shape
    stem: Stem | None = None
    sharing: int = 0


Answer = tuple[Row, dict[int, tuple[float, bool]], str]  # want's number -> sum and greedy; or an error


class Scoring:
    """Scores requests with a model. ``results`` yields each as it is ready."""

    def __init__(self, model: Any, spec: ModelSpec, plan: Plan, sweep: Sweep, requests: Sequence[ScoreRequest]) -> None:
        self._model, self._spec, self._plan = model, spec, plan
        self._requests = requests
        self._open = [len(request.continuations) for request in requests]
        self._answers: list[dict[int, tuple[float, bool]]] = [{} for _ in requests]
        self._room: Room = room_of(spec, plan)
        self._held: dict[int, tuple[Burden, int]] = {}  # stems that are kept: burden, micro-batches to come
        self._batches: dict[Job, Batch] = {}
        self._errors = [self._why_not(request) for request in requests]
        self._most = logit_rows(spec)
        self._scheduler = Scheduler(
            sweep, lambda burdens: self._room.fits([*burdens, *(b for b, _ in self._held.values())])
        )
        self.tokens = 0  # computed so far
        self.batches = self._batch_rows(
            rows_of(requests, self._errors, self._start_token() if spec.encoder_decoder else None)
        )

    @property
    def shapes(self) -> list[Shape]:
        """The micro-batches in the order in which they begin."""
        return [batch.shape for group in self.batches for batch in group]

    def results(self) -> Iterator[ScoreResult]:
        """Computes, and yields a result for each request. Raises OutsizeError for what concerns all."""
        for request, error in zip(self._requests, self._errors, strict=True):
            if error:
                yield ScoreResult(request.id, error=error)
        self._head = Head(self._model)
        running = self._scheduler.run()
        try:
            self._scheduler.add([self._job(group) for group in self.batches])
            self.batches = []
            for job in running:
                yield from self._settle(job)
        finally:
            running.close()
            self._head.close()

    # --- what is computed together ---

    def _batch_rows(self, rows: Sequence[Row]) -> list[tuple[Batch, ...]]:
        """Groups of micro-batches that begin together, stems before what shares them."""
        prefixes: tuple[Prefix, ...] = ()
        if can_graft(self._model, self._spec):
            prefixes = find_prefixes([r.tokens for r in rows], [r.wants[0].start for r in rows], levels=2)
        shared = {i for prefix in prefixes for i in prefix.rows}
        alone = [row for i, row in enumerate(rows) if i not in shared]
        groups: list[tuple[Batch, ...]] = []
        small = [p for p in prefixes if not p.inner and len(p.rows) <= MOST_LENT]
        groups += self._lend(rows, small, None, alone)
        for prefix in prefixes:
            if prefix not in small:
                groups += self._share(rows, prefix, alone)
        return [*groups, *((batch,) for batch in self._pack(alone, None))]

    def _share(self, rows: Sequence[Row], prefix: Prefix, alone: list[Row]) -> list[tuple[Batch, ...]]:
        """A stem that is kept until all who share it are done, and those."""
        head = Row(rows[prefix.rows[0]].tokens[: prefix.length])
        shape = Shape(1, prefix.length, scored=1, cached=True)
        if not self._room.fits([self._burden(shape)] * 2):
            alone += [rows[i] for i in prefix.rows]
            return []
        stem = Stem(graft(len(self._spec.blocks), keep=True), prefix.length)
        outer = [rows[i] for i in prefix.outer_rows]
        behind = self._lend(rows, prefix.inner, stem, outer)
        behind += [(batch,) for batch in self._pack(outer, stem)]
        return [(Batch([head], shape, stem, sharing=len(behind)),), *behind]

    def _lend(
        self, rows: Sequence[Row], prefixes: Sequence[Prefix], above: Stem | None, alone: list[Row]
    ) -> list[tuple[Batch, ...]]:
        """Pairs of a stem and what shares it: contexts of equal length together, so that nothing is padded between."""
        base = above.length if above else 0
        groups = []
        chosen: list[Prefix] = []

        def pair(several: Sequence[Prefix]) -> tuple[Batch, ...]:
            length = several[0].length
            stems = [Row(rows[p.rows[0]].tokens[:length]) for p in several]
            sharing = [rows[i] for p in several for i in p.rows]
            places = tuple(at for at, p in enumerate(several) for _ in p.rows)
            cache = graft(len(self._spec.blocks), above and above.cache, base, keep=True)
            lend(cache, 1)
            mine = Shape(len(stems), length - base, past=base, scored=len(stems), cached=True, lent=True)
            longest = max(len(r.tokens) for r in sharing) - length
            scored = sum(len(r.positions) for r in sharing)
            theirs = Shape(len(sharing), longest, past=length, scored=scored)
            return (
                Batch(stems, mine, Stem(cache, base), sharing=1),
                Batch(sharing, theirs, Stem(cache, length, places)),
            )

        def flush() -> None:
            if chosen:
                groups.append(pair(chosen))
                chosen.clear()

        for prefix in sorted(prefixes, key=lambda p: (-p.length, -max(len(rows[i].tokens) for i in p.rows))):
            if chosen and (prefix.length != chosen[0].length or not self._small(pair([*chosen, prefix]))):
                flush()
            if chosen or self._room.fits([self._burden(b.shape) for b in pair([prefix])]):
                chosen.append(prefix)
            else:
                alone += [rows[i] for i in prefix.rows]
        flush()
        return groups

    def _small(self, group: Sequence[Batch]) -> bool:
        """Whether micro-batches that begin together are small enough to compute, and have room."""
        shapes = [batch.shape for batch in group]
        return all(_is_small(s) for s in shapes) and self._room.fits([self._burden(s) for s in shapes])

    def _pack(self, rows: Sequence[Row], stem: Stem | None) -> list[Batch]:
        base = stem.length if stem else 0
        scored = max((len(row.positions) for row in rows), default=0)

        def shape(count: int, tokens: int, positions: int) -> Shape:
            return Shape(count, tokens, past=base, scored=positions)

        def fits(count: int, tokens: int) -> bool:
            made = shape(count, tokens, count * scored)
            return (count == 1 or made.scored <= MOST_SCORED) and self._room.fits([self._burden(made)])

        alike = moves_with_length(self._model)
        packs = pack([row.length - base for row in rows], fits, alike=alike)
        made = []
        for indexes in packs:
            several = [rows[i] for i in indexes]
            positions = sum(len(row.positions) for row in several)
            made.append(Batch(several, shape(len(several), several[0].length - base, positions), stem))
        return made

    def _burden(self, shape: Shape) -> Burden:
        return burden_of(self._spec, self._plan, shape)

    # --- jobs ---

    def _job(self, group: Sequence[Batch]) -> Job:
        first, *others = group
        jobs = [Job(self._work(batch), self._burden(batch.shape)) for batch in others]
        job = Job(self._work(first), self._burden(first.shape), together=jobs)
        self._batches.update(zip((job, *jobs), group, strict=True))
        return job

    def _work(self, batch: Batch) -> Callable[[], Any]:
        if batch.sharing:
            return lambda: self._compute_stem(batch)
        if self._spec.encoder_decoder:
            return lambda: self._score(batch, self._both_stacks(batch))
        return lambda: self._score(batch, self._one_stack(batch))

    def _compute_stem(self, batch: Batch) -> None:
        """Fills a cache; nobody wants its logits but of one position, to keep the head's work small."""
        assert batch.stem is not None
        ids = _padded([row.tokens[batch.stem.length if batch.shape.lent else 0 :] for row in batch.rows])
        pick = Pick([0], [ids.shape[1] - 1], self._most)
        inputs = {"input_ids": ids, "past_key_values": batch.stem.cache, "use_cache": True}
        for _ in self._head.logits(self._model, pick, inputs):
            pass

    def _one_stack(self, batch: Batch) -> dict[str, Any]:
        """Right-padded, without a mask: what is padded comes after all that counts, and no token sees the future."""
        stem = batch.stem
        if stem is None:
            return {"input_ids": _padded([row.tokens for row in batch.rows]), "use_cache": False}
        rows = None if stem.places is None else list(stem.places)
        cache = graft(len(self._spec.blocks), stem.cache, stem.length, rows, keep=False)
        ids = _padded([row.tokens[stem.length :] for row in batch.rows])
        return {"input_ids": ids, "past_key_values": cache, "use_cache": True}

    def _both_stacks(self, batch: Batch) -> dict[str, Any]:
        """The encoder reads each context once, whatever the number of its continuations."""
        contexts = list(dict.fromkeys(row.context for row in batch.rows))
        ids = _padded(contexts)
        mask = torch.tensor([[1] * len(c) + [0] * (ids.shape[1] - len(c)) for c in contexts])
        encoded = self._model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        which = torch.tensor([contexts.index(row.context) for row in batch.rows])
        hidden = encoded.last_hidden_state
        encoded.last_hidden_state = hidden[which.to(hidden.device)]
        return {
            "encoder_outputs": encoded,
            "attention_mask": mask[which],
            "decoder_input_ids": _padded([row.tokens for row in batch.rows]),
            "use_cache": False,
        }

    def _score(self, batch: Batch, inputs: dict[str, Any]) -> list[Answer]:
        base = batch.stem.length if batch.stem else 0
        rows: list[int] = []
        positions: list[int] = []
        places: list[int] = []  # among the positions, of each token that is wanted
        wanted: list[int] = []
        spans: list[tuple[int, int]] = []  # of each row, among the wanted
        for number, row in enumerate(batch.rows):
            here = {p: len(positions) + i for i, p in enumerate(row.positions)}
            rows += [number] * len(here)
            positions += [p - base for p in here]
            pairs = [(here[w.start + i], token) for w in row.wants for i, token in enumerate(w.tokens)]
            spans.append((len(places), len(places) + len(pairs)))
            places += [place for place, _ in pairs]
            wanted += [token for _, token in pairs]
        order = sorted(range(len(places)), key=places.__getitem__)
        logits = self._head.logits(self._model, Pick(rows, positions, self._most), inputs)
        found = likelihoods(logits, [places[i] for i in order], [wanted[i] for i in order], self._most)
        back = sorted(range(len(order)), key=order.__getitem__)
        logprobs, greedy = [found.logprobs[i] for i in back], [found.greedy[i] for i in back]
        return [_answer(row, logprobs[a:b], greedy[a:b]) for row, (a, b) in zip(batch.rows, spans, strict=True)]

    def _settle(self, job: Job) -> Iterator[ScoreResult]:
        """What a job that is done says about requests; what failed together is tried again in smaller parts."""
        batch = self._batches.pop(job)
        self.tokens += batch.shape.rows * batch.shape.tokens
        if batch.sharing:
            if not batch.shape.lent and not job.failure:
                stays = Burden(job.burden.resting, 0)
                self._held[id(batch.stem)] = (stays, batch.sharing)
            return
        self._drop_stem(batch)
        if job.failure:
            if batch.stem is None and len(batch.rows) == 1:
                yield from self._fail(batch.rows[0], job.failure)
                return
            self._try_again(batch)
            return
        for row, answers, error in job.value:
            if error:
                yield from self._fail(row, error)
            for number, answer in answers.items():
                want = row.wants[number]
                yield from self._take(want, answer)

    def _drop_stem(self, batch: Batch) -> None:
        """Forgets a stem behind the last of those who share it."""
        held = self._held.get(id(batch.stem))
        if held is not None:
            self._held[id(batch.stem)] = (held[0], held[1] - 1)
            if held[1] == 1:
                del self._held[id(batch.stem)]

    def _try_again(self, batch: Batch) -> None:
        """Without a stem first, then in halves."""
        half = (len(batch.rows) + 1) // 2 if batch.stem is None else len(batch.rows)
        parts = [part for part in (batch.rows[:half], batch.rows[half:]) if part]
        again = [small for part in parts for small in self._pack(part, None)]
        self._scheduler.add([self._job((small,)) for small in again], first=True)

    def _take(self, want: Want, answer: tuple[float, bool]) -> Iterator[ScoreResult]:
        if self._errors[want.request]:
            return
        request, answers = self._requests[want.request], self._answers[want.request]
        answers[want.choice] = answer
        if len(answers) == len(request.continuations):
            numbers = range(len(answers))
            yield ScoreResult(
                request.id,
                logprobs=tuple(answers[n][0] for n in numbers),
                tokens=tuple(len(tokens) for tokens in request.continuations),
                greedy=tuple(answers[n][1] for n in numbers),
            )
            answers.clear()

    def _fail(self, row: Row, error: str) -> Iterator[ScoreResult]:
        """One continuation that cannot be scored is the request's error."""
        for want in row.wants:
            if not self._errors[want.request]:
                self._errors[want.request] = error
                yield ScoreResult(self._requests[want.request].id, error=error)

    # --- what a request must be ---

    def _start_token(self) -> int:
        for name in ("decoder_start_token_id", "bos_token_id"):
            for config in (self._model.generation_config, self._model.config):
                token = getattr(config, name, None)
                if token is not None:
                    return int(token[0] if isinstance(token, list) else token)
        return 0

    def _why_not(self, request: ScoreRequest) -> str:
        """Why a request cannot be computed, or nothing."""
        if not request.continuations:
            return "there is nothing to score"
        if not request.context:
            return "the context is empty: it needs one token at least"
        if not all(request.continuations):
            return "a continuation is empty"
        for tokens in (request.context, *request.continuations):
            if error := unknown_token(tokens, self._spec):
                return error
        longest = max(len(tokens) for tokens in request.continuations)
        both = [len(request.context), longest] if self._spec.encoder_decoder else [len(request.context) + longest - 1]
        if error := too_long(max(both), self._spec):
            return error
        shape = Shape(1, max(both), scored=longest)
        if not self._room.fits([self._burden(shape)]):
            return f"{max(both)} tokens do not fit into the memory that the plan leaves; try: a larger context or batch"
        return ""


def rows_of(requests: Sequence[ScoreRequest], errors: Sequence[str], start: int | None) -> list[Row]:
    """The sequences to compute, each once, and none that another one begins with.

    ``start``: the decoder's first token where the context goes to an encoder.
    """
    wanted: list[tuple[tuple[int, ...], tuple[int, ...], Want]] = []
    for number, (request, error) in enumerate(zip(requests, errors, strict=True)):
        for choice, tokens in enumerate(request.continuations if not error else ()):
            before = request.context if start is None else (start,)
            context = () if start is None else request.context
            want = Want(number, choice, len(before) - 1, tokens)
            wanted.append((context, (*before, *tokens[:-1]), want))
    wanted.sort(key=lambda one: one[:2])
    rows: list[Row] = []
    for context, tokens, want in reversed(wanted):
        last = rows[-1] if rows else None
        if last is not None and last.context == context and last.tokens[: len(tokens)] == tokens:
            last.wants.append(want)
        else:
            rows.append(Row(tokens, context, [want]))
    for row in rows:
        row.wants.sort(key=lambda want: want.start)
    return rows[::-1]


def unknown_token(tokens: Sequence[int], spec: ModelSpec) -> str:
    """That a token id is none of the model's, or nothing."""
    if min(tokens) < 0 or max(tokens) >= spec.vocab_size:
        wrong = next(token for token in tokens if not 0 <= token < spec.vocab_size)
        return f"token {wrong} is none of the model's: they are 0..{spec.vocab_size - 1}"
    return ""


def too_long(tokens: int, spec: ModelSpec) -> str:
    """That a sequence has more tokens than the model has positions, or nothing."""
    if spec.max_positions is not None and tokens > spec.max_positions:
        return f"{tokens} tokens are more than the model's {spec.max_positions} positions"
    return ""


def _is_small(shape: Shape) -> bool:
    from outsize.planning.microbatch import MICRO_BATCH_TOKENS

    return shape.rows * shape.tokens <= MICRO_BATCH_TOKENS and shape.scored <= MOST_SCORED


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """[rows, longest], each filled up on the right with its own last token."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in rows])


def _answer(row: Row, logprobs: Sequence[float], greedy: Sequence[bool]) -> Answer:
    if not all(math.isfinite(value) for value in logprobs):
        return row, {}, "the model's logits are not finite"
    answers, at = {}, 0
    for number, want in enumerate(row.wants):
        upto = at + len(want.tokens)
        answers[number] = (math.fsum(logprobs[at:upto]), all(greedy[at:upto]))
        at = upto
    return row, answers, ""
