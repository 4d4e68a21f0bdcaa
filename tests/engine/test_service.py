"""Requests that come at any time: they share sweeps, and each gets the answer that it would get alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from requests_alone import generate_requests

import outsize
from outsize.engine.answer import Ended, Event, Failed, Scored, Token, Wish
from outsize.engine.request import GenerateRequest, ScoreRequest
from outsize.engine.service import Busy, Closing, Service
from outsize.errors import DoesNotFit, ModelChanged, UsageError
from outsize.planner.batches import Room


class Letters:
    """A tokenizer of 99 letters."""

    def get_added_vocab(self) -> dict[str, int]:
        return {"<end>": 7}

    def decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        return "".join(chr(0x4E00 + t) for t in tokens)


class Asked:
    """What came of a request: events until its last one."""

    def __init__(self, service: Service, *wishes: Wish, client: str = "") -> None:
        self.events: queue.Queue[tuple[int, Event]] = queue.Queue()
        self.ticket = service.submit(wishes, lambda number, event: self.events.put((number, event)), client)
        self.seen: list[Event] = []

    def first(self) -> Event:
        self.seen.append(self.events.get(timeout=60)[1])
        return self.seen[-1]

    def all(self) -> list[Event]:
        while not self.seen or not isinstance(self.seen[-1], Ended | Failed):
            self.first()
        return self.seen

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(event.token for event in self.all() if isinstance(event, Token))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), ARCHITECTURES["llama"].make_model())


@pytest.fixture(params=["disk", "ram"])
def model(folder: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    limits = {"ram": 0} if request.param == "disk" else {}
    with outsize.load(folder, no_gpu=True, weight_limits=limits, context=64, batch=4) as opened:
        yield opened


def wishes(requests: Sequence[GenerateRequest]) -> list[Wish]:
    return [Wish(r) for r in requests]


def test_answers_are_those_of_single_runs(model: Any) -> None:
    requests = generate_requests(12, new=6)
    alone = {r.id: next(iter(model.outsize.generate([r]))) for r in requests}
    with model.outsize.serving(Letters(), prefix_bytes=0) as service:
        asked = {r.id: Asked(service, Wish(r)) for r in requests}
        for key, one in asked.items():
            assert one.tokens == alone[key].tokens
            assert isinstance(one.seen[-1], Ended)
            assert "".join(getattr(event, "text", "") for event in one.seen) == Letters().decode(one.tokens)
        assert service.load().finished == 12
    assert not model.outsize._sweep.context.scheduled


def test_who_comes_later_joins_the_next_sweep(folder: Path) -> None:
    with (
        outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64, batch=4) as model,
        model.outsize.serving(Letters()) as service,
    ):
        begin = model.outsize.stats
        first = Asked(service, Wish(GenerateRequest("a", (5, 6, 7), max_new_tokens=30)))
        first.first()  # a token has come, so it is underway
        others = [Asked(service, Wish(GenerateRequest("b", (8 + i, 9), max_new_tokens=10))) for i in range(8)]
        for one in (first, *others):
            one.all()
        after = model.outsize.stats
        assert service.load().most_sharing == 9
        assert after.forwards - begin.forwards == service.load().new_tokens > 100
        assert after.sweeps - begin.sweeps <= 32  # nine requests: the sweeps of the longest, or nearly


def test_without_streamed_weights_all_have_their_turn(folder: Path) -> None:
    with (
        outsize.load(folder, no_gpu=True, context=64, batch=4) as model,
        model.outsize.serving(Letters()) as service,
    ):
        order: list[int] = []
        done = threading.Event()

        def tell(number: int, event: Event) -> None:
            if isinstance(event, Token):
                order.append(number)
            elif len(order) == 20:
                done.set()

        service.submit(wishes([GenerateRequest("", (5 + i, 6), max_new_tokens=10) for i in range(2)]), tell)
        assert done.wait(60)
        assert order == [0, 1] * 10


def test_beginnings_are_computed_once(model: Any) -> None:
    talk = tuple(5 + i for i in range(30))
    alone = next(iter(model.outsize.generate([GenerateRequest("", (*talk, 90), max_new_tokens=5)])))
    with model.outsize.serving(Letters()) as service:
        first = Asked(service, Wish(GenerateRequest("", talk, max_new_tokens=4)))
        answer = first.tokens
        again = Asked(service, Wish(GenerateRequest("", (*talk, 90), max_new_tokens=5)))
        assert again.tokens == alone.tokens
        assert isinstance(again.seen[-1], Ended)
        assert again.seen[-1].cached_tokens == 30
        turn = Asked(service, Wish(GenerateRequest("", (*talk, *answer, 91), max_new_tokens=1)))
        assert turn.all()[-1] == Ended("", "length", 1, 33)  # all that was computed: the last token never was
        assert service.load().kept_prefixes == 2  # the last one has what the first had


def test_what_is_kept_stays_within_its_budget(model: Any) -> None:
    with model.outsize.serving(Letters()) as service:
        Asked(service, Wish(GenerateRequest("", tuple(range(5, 35)), max_new_tokens=1))).all()
        each = service.load().kept_bytes
    with model.outsize.serving(Letters(), prefix_bytes=2 * each) as service:
        for start in (5, 40, 60, 5):
            prompt = tuple(range(start, start + 30))
            last = Asked(service, Wish(GenerateRequest("", prompt, max_new_tokens=1))).all()[-1]
            assert last == Ended("", "length", 1, 0)
            assert service.load().kept_bytes <= 2 * each
        last = Asked(service, Wish(GenerateRequest("", tuple(range(60, 90)), max_new_tokens=1))).all()[-1]
        assert last == Ended("", "length", 1, 29)


def test_prompts_are_scored_as_datasets_are(model: Any) -> None:
    prompt = tuple(range(10, 30))
    want = next(iter(model.outsize.score([ScoreRequest("", prompt[:1], (prompt[1:],))])))
    greedy = next(iter(model.outsize.generate([GenerateRequest("", prompt, max_new_tokens=3)])))
    with model.outsize.serving(Letters()) as service:
        for new in (0, 1, 3):
            wish = Wish(GenerateRequest("", prompt, max_new_tokens=new), logprobs=2, score_prompt=True)
            one = Asked(service, wish)
            assert one.tokens == greedy.tokens[:new]
            scored = one.seen[0]
            assert isinstance(scored, Scored)
            assert sum(t.logprob for t in scored.tokens) == pytest.approx(want.logprobs[0], abs=1e-4)
            assert [t.token for t in scored.tokens] == list(prompt[1:])
            assert all(len(t.top) == 2 and t.top[0][1] >= t.logprob for t in scored.tokens)


def test_those_who_leave_are_not_computed_further(model: Any) -> None:
    with model.outsize.serving(Letters()) as service:
        one = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=60)))
        other = Asked(service, Wish(GenerateRequest("", (7, 8), max_new_tokens=20)))
        one.first()
        service.cancel(one.ticket)
        assert one.all()[-1] == Failed("cancelled")
        assert len(one.tokens) < 59
        assert len(other.tokens) == 20
        assert service.load().underway == 0


def test_those_that_wait_take_turns_by_client(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.engine.service.MOST_UNDERWAY", 1)
    with model.outsize.serving(Letters(), most_pending=6) as service:
        order: list[str] = []
        end = threading.Event()

        def teller(name: str) -> Any:
            def tell(number: int, event: Event) -> None:
                if isinstance(event, Ended):
                    order.append(name)
                    if len(order) == 5:
                        end.set()

            return tell

        one = GenerateRequest("", (5, 6), max_new_tokens=3)
        with service._changed:  # nothing begins meanwhile
            service.submit(wishes([one] * 3), teller("a"), "a")
            service.submit(wishes([one] * 2), teller("b"), "b")
            with pytest.raises(Busy, match="again in") as busy:
                service.submit(wishes([one] * 2), teller("c"), "c")
            assert busy.value.seconds >= 0
        assert end.wait(60)
        assert order == ["a", "b", "a", "b", "a"]


def test_what_never_fits_is_refused_and_what_does_not_fit_now_waits(model: Any) -> None:
    with model.outsize.serving(Letters(), prefix_bytes=0) as service:
        one = Wish(GenerateRequest("", (5, 6), max_new_tokens=5))
        use = service.memory_use(one)
        service._room = Room(tuple((tier, size + use.workspace) for tier, size in use.resting))
        with pytest.raises(DoesNotFit, match=r"need .*have"):
            service.check(Wish(GenerateRequest("", tuple(range(5, 60)), max_new_tokens=8)))
        asked = [Asked(service, one) for _ in range(3)]
        assert len({one.tokens for one in asked}) == 1
        assert service.load().most_sharing == 1


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        (Wish(GenerateRequest("", ())), "empty"),
        (Wish(GenerateRequest("", (5,), max_new_tokens=0)), "at least 1"),
        (Wish(GenerateRequest("", (5, 1000))), "token 1000"),
        (Wish(GenerateRequest("", (5,) * 10, max_new_tokens=100_000)), "positions"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, wish: Wish, word: str) -> None:
    with (
        outsize.load(folder, no_gpu=True, context=64) as model,
        model.outsize.serving(Letters()) as service,
        pytest.raises(UsageError, match=word),
    ):
        service.submit([wish], lambda number, event: None)


def test_an_end_lets_those_underway_end(model: Any) -> None:
    with model.outsize.serving(Letters()) as service:
        one = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=20)))
        service.close(drain_s=60)
        assert len(one.tokens) == 20
        with pytest.raises(Closing):
            Asked(service, Wish(GenerateRequest("", (5, 6))))
    assert torch.is_tensor(model(input_ids=torch.tensor([[5]])).logits)


def test_an_end_without_patience_cancels(model: Any) -> None:
    with model.outsize.serving(Letters()) as service:
        one = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=60)))
        one.first()
        service.close()
        assert one.all()[-1] == Failed("cancelled")


def test_files_that_vanish_break_the_service(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model())
    with (
        outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64, batch=4) as model,
        model.outsize.serving(Letters()) as service,
    ):
        one = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=60)))
        one.first()
        (folder / "model.safetensors").unlink()
        assert isinstance(one.all()[-1], Failed)
        with pytest.raises(ModelChanged):
            Asked(service, Wish(GenerateRequest("", (5, 6))))


def test_biases_penalties_and_stops(model: Any) -> None:
    with model.outsize.serving(Letters(), prefix_bytes=0) as service:
        plain = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=8))).tokens
        biased = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=3, logit_bias=((42, 100.0),))))
        assert biased.tokens == (42, 42, 42)
        assert biased.seen[-1] == Ended("", "length", 3, 0)
        once = GenerateRequest("", (5, 6), max_new_tokens=6, logit_bias=((42, 50.0),), presence_penalty=100.0)
        assert Asked(service, Wish(once)).tokens.count(42) == 1
        letters = Letters().decode(plain)
        stopped = Asked(service, Wish(GenerateRequest("", (5, 6), max_new_tokens=8, stop=(letters[2:4],))))
        text = "".join(getattr(event, "text", "") for event in stopped.all())
        assert text == letters[: letters.index(letters[2:4])]
        assert isinstance(stopped.seen[-1], Ended)
        assert stopped.seen[-1].finish == "stop"
        special = GenerateRequest("", (5, 6), max_new_tokens=8, stop=("<end>",), logit_bias=((7, 100.0),))
        assert Asked(service, Wish(special)).all() == [Ended("", "stop", 1, 0)]
