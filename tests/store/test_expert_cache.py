"""The cache of experts: the right bytes in every order, what leaves first, reads ahead, errors, no deadlock."""

from __future__ import annotations

import ctypes
import importlib.util
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from store.fake_files import FakeFiles, content
from store.patience import PATIENCE, in_thread, until

from outsize.errors import DamagedModel, ModelChanged, OutsizeError
from outsize.models.spec import StoredTensor
from outsize.store.expert_cache import CachedExpert, ExpertCache
from outsize.store.layout import lay_out
from outsize.store.trace import Trace

PARTS = (6000, 3000)  # bytes of an expert's two tensors, which lie apart in its file: two reads each and one
SLOT = 12288
SIZE = 9000
POLICIES = Path(__file__).parents[2] / "bench" / "expert_policies.py"


def layouts(layers: int, experts: int) -> list[list[Any]]:
    """Each expert in a file of its own, by its number among all."""
    parts = [(0, PARTS[0]), (40960, PARTS[1])]
    return [
        [
            lay_out(StoredTensor("w", "uint8", (n,), str(i * experts + j), at, n) for at, n in parts)
            for j in range(experts)
        ]
        for i in range(layers)
    ]


class Opened:
    """Caches of one test, closed at its end."""

    def __init__(self) -> None:
        self.caches: list[ExpertCache] = []

    def __call__(
        self, layers: int, experts: int, slots: int, files: FakeFiles | None = None, **more: Any
    ) -> ExpertCache:
        files = files or FakeFiles()
        cache = ExpertCache(files, layouts(layers, experts), slots=slots, slot_bytes=SLOT, **more)
        self.caches.append(cache)
        return cache


@pytest.fixture
def opened() -> Iterator[Opened]:
    made = Opened()
    yield made
    for cache in made.caches:
        cache._readers._files.close()  # type: ignore[attr-defined]
        cache.close()


def right(cache: ExpertCache, expert: CachedExpert) -> bool:
    """Whether the expert's slot holds its bytes."""
    assert expert.view is not None
    file = str(expert.layer * len(cache._layers[0]) + expert.number)
    first, second = expert.layout.positions[file, 0], expert.layout.positions[file, 40960]
    found = bytes(expert.view[first : first + PARTS[0]]), bytes(expert.view[second : second + PARTS[1]])
    return found == (content(file, 0, PARTS[0]), content(file, 40960, PARTS[1]))


def use(cache: ExpertCache, layer: int, numbers: Sequence[int], *, scan: bool = False) -> list[int]:
    """Fetches and looks at each; returns the numbers in the order in which they came."""
    came: list[int] = []
    for ready in cache.fetch(layer, numbers, scan=scan):
        assert ready
        assert all(right(cache, expert) for expert in ready)
        came += [expert.number for expert in ready]
    return came


def held(cache: ExpertCache, layer: int) -> set[int]:
    """The experts of a layer that are in memory."""
    return {expert.number for expert in cache._layers[layer] if expert.state == "ready"}


def distinct_slots(cache: ExpertCache) -> None:
    """No two experts in one slot, none that is both taken and free, none lost."""
    with cache._changed:
        views = [e.view for layer in cache._layers for e in layer if e.view is not None] + cache._free
        addresses = {ctypes.addressof(ctypes.c_char.from_buffer(view)) for view in views}
    assert len(addresses) == len(views) == cache._slots


def test_what_is_there_is_not_read_again(opened: Opened) -> None:
    files = FakeFiles()
    trace = Trace()
    cache = opened(2, 8, 8, files, trace=trace)
    assert sorted(use(cache, 0, [1, 5])) == [1, 5]
    assert sorted(use(cache, 1, [5, 1, 7])) == [1, 5, 7]
    assert sorted(use(cache, 0, [1, 2])) == [1, 2]
    assert (cache.stats.hits, cache.stats.misses) == (1, 6)
    assert cache.stats.bytes_read == 6 * SIZE
    assert sorted(files.reads) == sorted(name for name in ("1", "5", "9", "13", "15", "2") for _ in range(3))
    assert set(files.checks) == {"1", "5", "9", "13", "15", "2"}
    assert cache.stats.waited_s > 0
    assert "expert 7 of layer 1" in {span.name for span in trace.spans if span.kind == "read"}
    assert "experts of layer 1" in {span.name for span in trace.spans if span.kind == "wait"}
    assert use(cache, 0, []) == []
    distinct_slots(cache)


def test_what_is_at_hand_is_used_at_once(opened: Opened) -> None:
    cache = opened(1, 8, 4, readers=1)
    assert cache.at_hand(0, [0, 1]) is None
    use(cache, 0, [0])
    use(cache, 0, [1], scan=True)
    use(cache, 0, [2])
    assert cache.at_hand(0, [0, 3]) is None
    experts = cache.at_hand(0, [0, 1])
    assert experts is not None
    assert [expert.number for expert in experts] == [0, 1]
    assert all(right(cache, expert) for expert in experts)
    assert (cache.stats.hits, cache.stats.misses) == (2, 3)
    use(cache, 0, [3, 4])  # both count as used now, after 2
    assert held(cache, 0) == {0, 1, 3, 4}
    cache.close()
    with pytest.raises(OutsizeError, match="closed"):
        cache.at_hand(0, [0])


def test_what_was_read_ahead_and_is_at_hand_was_asked_for(opened: Opened) -> None:
    cache = opened(2, 4, 16)
    use(cache, 0, range(4), scan=True)
    until(lambda: held(cache, 1) == {0, 1, 2, 3})
    assert cache.at_hand(1, [0, 1]) is not None
    assert {expert.number for expert in cache._ahead} == {2, 3}


def test_weights_are_kept_with_an_expert_and_go_with_it(opened: Opened) -> None:
    cache = opened(1, 4, 2)
    for (expert,) in cache.fetch(0, [0]):
        expert.weights = "made"
    for (expert,) in cache.fetch(0, [0]):
        assert expert.weights == "made"
    use(cache, 0, [1])
    use(cache, 0, [2])
    for (expert,) in cache.fetch(0, [0]):
        assert expert.weights is None


def test_what_rests_in_memory_is_read_at_once_and_in_order(opened: Opened) -> None:
    files = FakeFiles()
    cache = opened(3, 4, 6, files, readers=1)
    cache.load([2, 0])
    until(lambda: held(cache, 2) == {0, 1, 2, 3})
    until(lambda: held(cache, 0) == {0, 1})  # as many as there is room for
    assert list(dict.fromkeys(files.reads)) == ["8", "9", "10", "11", "0", "1"]
    use(cache, 0, [0, 1])
    assert (cache.stats.hits, cache.stats.misses) == (2, 0)


def policies() -> Any:
    """The caches that decision 0011 compares."""
    spec = importlib.util.spec_from_file_location("expert_policies", POLICIES)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("expert_policies", found)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("layers", "experts", "slots", "k"), [(3, 8, 10, 2), (4, 6, 16, 3), (1, 9, 4, 2), (2, 8, 12, 4)]
)
def test_what_leaves_is_what_the_simulator_says(opened: Opened, layers: int, experts: int, slots: int, k: int) -> None:
    """A random trace, against the policy of bench/routing.py that decision 0011 chose: expert by expert.

    The cache takes more than one token uses: the simulator may throw out what is computed with.
    """
    dice = random.Random(experts)
    cache = opened(layers, experts, slots, readers=1)
    simulated = policies().TokenLRU(slots, experts, layers)
    favourites = [dice.sample(range(experts), experts) for _ in range(layers)]
    hits = 0
    for _ in range(60):
        for layer in range(layers):
            weights = [1 / (1 + favourites[layer].index(i)) for i in range(experts)]
            numbers = sorted(set(dice.choices(range(experts), weights, k=k)))
            there = [number for number in numbers if number in held(cache, layer)]
            came = use(cache, layer, numbers)
            assert came[: len(there)] == there  # what is there does not wait for the others
            hits += simulated.use([layer * experts + number for number in came])
            kept = [{one - i * experts for one in of} for i, of in enumerate(simulated.lists)]
            assert [held(cache, i) for i in range(layers)] == kept
    assert cache.stats.hits == hits > 0
    assert cache.stats.bytes_read == simulated.reads * SIZE == cache.stats.misses * SIZE


def test_of_equals_the_one_whose_layer_comes_last_goes(opened: Opened) -> None:
    cache = opened(4, 4, 4, readers=1)
    for layer in range(4):
        use(cache, layer, [0])
    use(cache, 0, [0])
    use(cache, 1, [1])  # all but layer 0's were used one token ago; 1 has passed and comes last of all
    assert [held(cache, i) for i in range(4)] == [{0}, {1}, {0}, {0}]
    use(cache, 2, [1])
    assert [held(cache, i) for i in range(4)] == [{0}, {1}, {1}, {0}]


def test_a_scan_evicts_next_to_nothing_and_brings_all_in_order(opened: Opened) -> None:
    layers, experts, slots = 4, 32, 64
    cache = opened(layers, experts, slots)
    dice = random.Random(3)
    for _ in range(20):
        for layer in range(layers):
            use(cache, layer, sorted(dice.sample(range(experts), 4)))
    before = [held(cache, layer) for layer in range(layers)]
    assert sum(len(of) for of in before) == slots
    for _ in range(3):
        for layer in range(layers):
            numbers = sorted(dice.sample(range(experts), 30))
            assert use(cache, layer, numbers, scan=True) == numbers
    left = sum(len(of & held(cache, layer)) for layer, of in enumerate(before))
    assert left >= slots - 2 * cache._most_ahead
    assert cache._most_ahead == slots // 4 == 16
    distinct_slots(cache)


def test_a_scan_leaves_the_order_of_what_it_finds(opened: Opened) -> None:
    cache = opened(1, 8, 4, readers=1)
    for numbers in ([0], [1], [2], [3]):
        use(cache, 0, numbers)
    use(cache, 0, [3, 2, 1, 0], scan=True)
    use(cache, 0, [7])
    assert held(cache, 0) == {1, 2, 3, 7}  # 0 was used longest ago, whatever the scan did


def test_what_a_scan_has_read_goes_first_unless_it_is_used(opened: Opened) -> None:
    cache = opened(1, 8, 4, readers=1)
    use(cache, 0, [0])
    use(cache, 0, [1, 2, 3], scan=True)
    use(cache, 0, [2])
    use(cache, 0, [4])
    assert held(cache, 0) == {0, 1, 2, 4}
    use(cache, 0, [5])
    assert held(cache, 0) == {0, 2, 4, 5}
    use(cache, 0, [6])
    assert held(cache, 0) == {2, 4, 5, 6}


def test_a_scan_reads_ahead(opened: Opened) -> None:
    files = FakeFiles()
    cache = opened(5, 8, 40, files, readers=1)
    fetch = cache.fetch(0, range(8), scan=True)
    next(fetch)
    # The rest of the layer, and of those that follow as many as there is room for: ten, of two layers at most.
    until(lambda: len(set(files.reads)) == 10 + 8)
    assert list(dict.fromkeys(files.reads)) == [str(i) for i in range(18)]
    fetch.close()
    for layer in range(5):
        assert use(cache, layer, range(8), scan=True) == list(range(8))
    assert len(files.reads) == 40 * 3  # each once
    # Those of the scan that was ended, and then all others; what it has brought is there.
    assert (cache.stats.hits, cache.stats.misses) == (18, 8 + 22)


def test_reads_ahead_count_as_misses(opened: Opened) -> None:
    cache = opened(3, 8, 12)
    for layer in range(3):
        use(cache, layer, range(8), scan=True)
    until(lambda: cache.stats.bytes_read == 24 * SIZE)
    assert (cache.stats.hits, cache.stats.misses) == (0, 24)


def test_what_was_read_ahead_for_a_pass_that_ended_is_forgotten(opened: Opened) -> None:
    cache = opened(4, 8, 16)
    fetch = cache.fetch(1, range(8), scan=True)
    next(fetch)
    fetch.close()
    assert cache._ahead
    assert use(cache, 0, [0]) == [0]
    assert not cache._ahead
    assert use(cache, 0, range(8), scan=True) == list(range(8))


def test_a_token_reads_nothing_ahead(opened: Opened) -> None:
    files = FakeFiles()
    cache = opened(3, 8, 24, files)
    for layer in range(3):
        use(cache, layer, [1, 2])
    assert sorted(set(files.reads), key=int) == ["1", "2", "9", "10", "17", "18"]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_fewer_slots_than_experts_are_asked_for(opened: Opened, slots: int, scan: bool) -> None:
    files = FakeFiles(jitter=0.0005)
    cache = opened(2, 7, slots, files)

    def work() -> list[list[int]]:
        return [use(cache, layer, [6, 0, 1, 5, 3], scan=scan) for _ in range(3) for layer in range(2)]

    found = in_thread(work)
    assert isinstance(found, list)
    for came in found:
        assert (came if scan else sorted(came)) == ([6, 0, 1, 5, 3] if scan else [0, 1, 3, 5, 6])
    distinct_slots(cache)


def test_what_is_asked_for_is_read_before_what_is_only_expected(opened: Opened) -> None:
    files = FakeFiles()
    files.gate.clear()
    cache = opened(2, 6, 12, files, readers=1)
    cache.load([0, 1])
    until(lambda: len(files.reads) == 1)
    thread = threading.Thread(target=lambda: use(cache, 1, [5, 2]), daemon=True)
    thread.start()
    until(lambda: cache._held != ())
    until(lambda: cache.stats.hits == 2)
    files.gate.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    until(lambda: len(files.reads) == 36)
    assert list(dict.fromkeys(files.reads))[:3] == ["0", "11", "8"]


def test_what_its_user_has_put_elsewhere_leaves_and_is_not_read_ahead(opened: Opened) -> None:
    files = FakeFiles()
    cache = opened(2, 6, 12, files)
    for ready in cache.fetch(1, range(4)):
        for expert in ready:
            expert.elsewhere = True
    assert held(cache, 1) == set()
    distinct_slots(cache)
    use(cache, 0, range(6), scan=True)
    use(cache, 1, [4, 5], scan=True)
    assert len(files.reads) == 3 * 12
    assert held(cache, 1) == {4, 5}


@pytest.mark.parametrize("where", ["fail", "fail_check"])
@pytest.mark.parametrize("error", [ModelChanged("2 changed"), DamagedModel("2 cannot be read")], ids=["changed", "io"])
def test_an_error_of_a_reader_reaches_the_fetcher(opened: Opened, where: str, error: OutsizeError) -> None:
    files = FakeFiles()
    getattr(files, where)["2"] = error
    cache = opened(1, 4, 4, files)
    assert in_thread(lambda: use(cache, 0, [2])) is error
    with pytest.raises(type(error)):
        use(cache, 0, [0])
    until(lambda: not any(thread.is_alive() for thread in cache._readers._threads))


def test_an_error_of_what_is_read_ahead_reaches_the_fetcher(opened: Opened) -> None:
    files = FakeFiles()
    files.fail["3"] = ModelChanged("3 changed")
    cache = opened(1, 4, 8, files)
    assert isinstance(in_thread(lambda: use(cache, 0, [0, 1, 2, 3], scan=True)), ModelChanged)


def test_close_wakes_whoever_waits_and_waits_for_reads_under_way() -> None:
    files = FakeFiles()
    files.gate.clear()
    cache = ExpertCache(files, layouts(1, 4), slots=4, slot_bytes=SLOT)
    results: list[object] = []

    def work() -> None:
        try:
            use(cache, 0, [0, 1])
        except OutsizeError as error:
            results.append(str(error))

    waiting = threading.Thread(target=work, daemon=True)
    waiting.start()
    until(lambda: len(files.reads) == 6)
    closing = threading.Thread(target=cache.close, daemon=True)
    closing.start()
    waiting.join(PATIENCE)
    assert closing.is_alive()  # reads are under way
    files.gate.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert results == ["the model was closed; try: load it again"]
    assert not any(thread.is_alive() for thread in cache._readers._threads)
    assert cache._memory is None
    with pytest.raises(OutsizeError, match="closed"):
        use(cache, 0, [0])
    cache.close()


@pytest.mark.parametrize("scan", [False, True])
def test_close_while_somebody_computes(opened: Opened, scan: bool) -> None:
    """The fetch says so when it goes on, and in no other way."""
    cache = opened(1, 8, 8)
    use(cache, 0, [0, 1])
    fetch = cache.fetch(0, range(8), scan=scan)
    next(fetch)
    cache.close()
    with pytest.raises(OutsizeError, match="the model was closed"):
        list(fetch)


def test_a_fetch_that_is_ended_early_holds_nothing(opened: Opened) -> None:
    cache = opened(1, 8, 4)
    for _ in range(8):
        fetch = cache.fetch(0, [0, 1, 2, 3])
        next(fetch)
        fetch.close()
    assert not any(expert.pinned for expert in cache._layers[0])
    assert in_thread(lambda: sorted(use(cache, 0, [4, 5, 6, 7]))) == [4, 5, 6, 7]


def test_fetches_that_nobody_ends_hold_nothing_either(opened: Opened) -> None:
    """As tracebacks keep them: neither does the next one wait for ever, nor does it lose what it holds in their end."""
    cache = opened(1, 8, 4, readers=1)
    left = [cache.fetch(0, [i, i + 1]) for i in (0, 2, 4)]
    for fetch in left:
        next(fetch)
    assert in_thread(lambda: sorted(use(cache, 0, [6, 7]))) == [6, 7]
    last = cache.fetch(0, [4, 5])
    ready = next(last)
    for fetch in left:
        fetch.close()
    assert all(expert.pinned for expert in ready)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OutsizeError, match="does not fit into the cache; need 12288 bytes, have 3 slots of 8192 bytes"):
        ExpertCache(FakeFiles(), layouts(1, 2), slots=3, slot_bytes=8192)
    with pytest.raises(OutsizeError, match="0 slots"):
        ExpertCache(FakeFiles(), layouts(1, 2), slots=0, slot_bytes=SLOT)


@pytest.mark.parametrize("seed", range(6))
def test_random_fetches_and_delays(opened: Opened, seed: int) -> None:
    """Tokens, scans, fetches that are ended in the middle: always the right bytes, never two experts in one slot."""
    dice = random.Random(seed)
    layers, experts = 2, dice.randrange(3, 12)
    slots = dice.randrange(1, 2 * experts + 2)
    files = FakeFiles(jitter=0.0003, seed=seed)
    cache = opened(layers, experts, slots, files, readers=8)
    if dice.random() < 0.5:
        cache.load([dice.randrange(layers)])

    def work() -> str:
        for _ in range(120):
            scan = dice.random() < 0.3
            for layer in range(layers):
                numbers = sorted(dice.sample(range(experts), dice.randrange(experts + 1)))
                came = []
                stop = dice.randrange(experts) if dice.random() < 0.1 else None
                for ready in cache.fetch(layer, numbers, scan=scan):
                    assert all(right(cache, expert) for expert in ready)
                    if dice.random() < 0.05:
                        time.sleep(0.001)
                    assert all(right(cache, expert) and expert.state == "ready" for expert in ready)
                    came += [expert.number for expert in ready]
                    if stop is not None and len(came) > stop:
                        break
                else:
                    assert (came if scan else sorted(came)) == numbers
            distinct_slots(cache)
        return "done"

    outcome = in_thread(work)
    assert outcome == "done", repr(outcome)
    until(lambda: not any(e.state == "loading" for of in cache._layers for e in of))
    distinct_slots(cache)
    ready = [e for of in cache._layers for e in of if e.state == "ready"]
    assert all(right(cache, expert) for expert in ready)
    assert cache.stats.bytes_read % SIZE == 0
    assert cache.stats.bytes_read * 3 == len(files.reads) * SIZE
