"""Streams: the right bytes in every order, few buffers, no deadlock, errors that reach the one who computes."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

import pytest
from store.fake_files import FakeFiles, holds, make_groups
from store.patience import PATIENCE, in_thread, until

from outsize.errors import DamagedModel, ModelChanged, OutsizeError
from outsize.store.buffer import Memory
from outsize.store.stream import Stream


class Opened:
    """Streams of one test, closed at its end."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def __call__(
        self, stays: Sequence[str], files: FakeFiles, *, slots: int = 2, nbytes: int = 4096, after_last: int = 0
    ) -> Stream:
        size = -(-nbytes // 4096) * 4096
        stream = Stream(files, make_groups(stays, nbytes), slots=slots, slot_bytes=size)
        self.streams.append(stream)
        stream.start(after_last)
        return stream


@pytest.fixture
def opened() -> Iterator[Opened]:
    made = Opened()
    yield made
    for stream in made.streams:
        stream._readers._files.close()
        stream.close()


def pass_through(stream: Stream, order: Sequence[int], nbytes: int = 4096) -> None:
    for index in order:
        assert holds(stream.acquire(index), index, nbytes)
        stream.release(index)


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_sweeps_give_the_right_bytes(opened: Opened, slots: int) -> None:
    stream = opened(["keep", "stream", "once", "stream", "keep", "stream"], FakeFiles(), slots=slots, nbytes=9000)
    pass_through(stream, range(6), 9000)
    for _ in range(3):
        pass_through(stream, [1, 3, 5], 9000)
    assert stream.stats.mispredicted == 0


@pytest.mark.parametrize("seed", range(12))
def test_random_orders_random_delays_and_nested_holds(opened: Opened, seed: int) -> None:
    dice = random.Random(seed)
    stays: list[str] = [dice.choice(("keep", "stream", "stream")) for _ in range(dice.randrange(2, 9))]
    slots = dice.randrange(2, 4)
    files = FakeFiles(jitter=0.002, seed=seed)
    stream = opened(stays, files, slots=slots, nbytes=10000)

    def work() -> None:
        held: list[int] = []
        for _ in range(60):
            index = dice.randrange(len(stays))
            memory = stream.acquire(index)
            assert holds(memory, index, 10000)
            if index not in held:
                held.append(index)
            while len(held) >= slots or (held and dice.random() < 0.7):
                one = held.pop(dice.randrange(len(held)))
                assert holds(stream.acquire(one), one, 10000)  # still there
                stream.release(one)

    assert in_thread(work) is None


def test_no_more_buffers_than_slots_are_ever_made(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Memory):
        def __init__(self, nbytes: int) -> None:
            made.append(nbytes)
            super().__init__(nbytes)

    monkeypatch.setattr("outsize.store.stream.Memory", Counted)
    stream = opened(["stream", "once", "stream", "keep", "stream"], FakeFiles(), slots=2)
    pass_through(stream, [0, 1, 2, 3, 4, 2, 0, 4, 2, 0])
    assert len(made) == 2 + 1


def test_the_rings_memory_goes_once_all_has_passed(opened: Opened) -> None:
    stream = opened(["once", "keep", "once", "once"], FakeFiles())
    buffers = [weakref.ref(stream.acquire(0))]
    stream.release(0)
    pass_through(stream, [1, 2, 3])
    gc.collect()
    assert [ref() for ref in buffers] == [None]
    assert stream._free == []
    assert stream.loaded_bytes == 4 * 4096
    with pytest.raises(OutsizeError, match="passed on already"):
        stream.acquire(2)


def test_reads_go_in_the_order_in_which_they_are_needed(opened: Opened) -> None:
    files = FakeFiles()
    groups = make_groups(["keep"] * 6)
    stream = Stream(files, groups, slots=0, slot_bytes=0, readers=1)
    opened.streams.append(stream)
    stream.start()
    until(lambda: len(files.reads) == 6)
    assert files.reads == list("012345")


def test_what_is_asked_for_is_read_before_what_is_only_expected(opened: Opened) -> None:
    files = FakeFiles()
    files.gate.clear()
    stream = Stream(files, make_groups(["keep"] * 6), slots=0, slot_bytes=0, readers=1)
    opened.streams.append(stream)
    stream.start()
    until(lambda: len(files.reads) == 1)
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(holds(stream.acquire(4), 4)))
    thread.start()
    until(lambda: stream._out_of_turn is not None)
    files.gate.set()
    thread.join(PATIENCE)
    assert results == [True]
    assert files.reads[:2] == ["0", "4"]
    assert stream.stats.waited_s > 0
    until(lambda: len(files.reads) == 6)


def test_a_tied_embedding_at_the_end_drops_nothing_that_was_read_ahead(opened: Opened) -> None:
    files = FakeFiles()
    stream = opened(["stream", "stream", "keep", "keep"], files, slots=2)
    until(lambda: stream.loaded_bytes == 2 * 4096 and len(files.reads) == 4)
    pass_through(stream, [3])  # as the embedding
    stream.read_past_end(False)
    pass_through(stream, [0, 1, 2, 3])
    assert sorted(files.reads) == list("0123")
    assert stream.stats.mispredicted == 0


def test_one_streamed_group_is_not_read_past_the_end(opened: Opened) -> None:
    files = FakeFiles()
    stream = opened(["keep", "stream", "keep"], files, slots=1)
    pass_through(stream, [0, 1, 2])
    stream.read_past_end(False)
    pass_through(stream, [0, 1, 2])
    assert sorted(files.reads) == list("0112")


def test_a_decoder_that_is_swept_again_costs_one_surprise_per_prompt(opened: Opened) -> None:
    """Blocks 0..2 are the encoder's, 3..5 the decoder's."""
    files = FakeFiles()
    stream = opened(["stream"] * 6, files, after_last=3)
    for prompt in range(4):
        before = stream.stats.mispredicted
        pass_through(stream, [0, 1, 2])
        for _ in range(5):
            pass_through(stream, [3, 4, 5])
        assert stream.stats.mispredicted - before == (1 if prompt else 0)
    # What is read for nothing is what was read ahead when a prompt came.
    assert len(files.reads) <= 4 * (3 + 5 * 3) + 3 * 2 + 2


def test_another_order_is_learnt_when_it_comes_twice(opened: Opened) -> None:
    stream = opened(["stream"] * 4, FakeFiles())
    for _ in range(2):
        pass_through(stream, [0, 2, 1, 3])
    before = stream.stats.mispredicted
    for _ in range(3):
        pass_through(stream, [0, 2, 1, 3])
    assert stream.stats.mispredicted == before


def test_a_steady_sweep_reads_every_byte_once(opened: Opened) -> None:
    files = FakeFiles(jitter=0.001)
    stream = opened(["stream"] * 5, files, slots=2)
    for _ in range(4):
        pass_through(stream, range(5))
    until(lambda: stream.stats.bytes_read == (4 * 5 + 2) * 4096)
    assert len(files.reads) == 4 * 5 + 2  # and what comes next
    assert set(files.checks) == set("01234")


def test_all_buffers_held_at_once_is_an_error_and_no_deadlock(opened: Opened) -> None:
    stream = opened(["stream"] * 4, FakeFiles(), slots=2)
    stream.acquire(0)
    stream.acquire(2)
    error = in_thread(lambda: stream.acquire(3))
    assert isinstance(error, OutsizeError)
    assert "all 2 are in use" in str(error)
    stream.release(0)
    assert holds(stream.acquire(3), 3)


def test_what_does_not_fit_the_ring_is_refused() -> None:
    with pytest.raises(OutsizeError, match="unit 0 does not pass through the ring"):
        Stream(FakeFiles(), make_groups(["stream"], 8192), slots=2, slot_bytes=4096)
    with pytest.raises(OutsizeError, match="0 buffers"):
        Stream(FakeFiles(), make_groups(["once"], 4096), slots=0, slot_bytes=4096)


@pytest.mark.parametrize("where", ["fail", "fail_check"])
def test_an_error_in_a_reader_reaches_whoever_acquires(opened: Opened, where: str) -> None:
    files = FakeFiles()
    getattr(files, where)["2"] = ModelChanged("2 changed")
    stream = opened(["stream"] * 4, files)
    found = in_thread(lambda: pass_through(stream, [0, 1, 2, 3]))
    assert isinstance(found, ModelChanged)
    with pytest.raises(ModelChanged):
        stream.acquire(0)
    until(lambda: not any(thread.is_alive() for thread in stream._readers._threads))


def test_an_error_while_somebody_waits(opened: Opened) -> None:
    files = FakeFiles()
    files.gate.clear()
    files.fail["0"] = DamagedModel("0 cannot be read")
    stream = opened(["stream"] * 4, files)
    results: list[object] = []

    def work() -> None:
        try:
            stream.acquire(0)
        except DamagedModel as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: stream._order.last == 0)
    files.gate.set()
    thread.join(PATIENCE)
    assert [str(error) for error in results] == ["0 cannot be read"]


def test_close_wakes_whoever_waits_and_waits_for_reads_under_way() -> None:
    files = FakeFiles()
    files.gate.clear()
    stream = Stream(files, make_groups(["stream"] * 3), slots=2, slot_bytes=4096)
    stream.start()
    until(lambda: len(files.reads) == 2)
    results: list[object] = []

    def work() -> None:
        try:
            stream.acquire(0)
        except OutsizeError as error:
            results.append(str(error))

    waiting = threading.Thread(target=work)
    waiting.start()
    until(lambda: stream._order.last == 0)
    closing = threading.Thread(target=stream.close)
    closing.start()
    waiting.join(PATIENCE)
    assert closing.is_alive()  # a read is under way
    files.gate.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert results == ["the model was closed; try: load it again"]
    assert not any(thread.is_alive() for thread in stream._readers._threads)
    with pytest.raises(OutsizeError, match="closed"):
        stream.acquire(1)
    stream.release(1)
    stream.close()


def test_close_before_start_and_a_stream_of_nothing() -> None:
    Stream(FakeFiles(), make_groups(["keep"]), slots=0, slot_bytes=0).close()
    empty = Stream(FakeFiles(), [], slots=2, slot_bytes=0)
    empty.start()
    assert empty.loaded_bytes == 0
    empty.close()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Workers that run tests side by side ignore ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_leaves_the_stream_whole(opened: Opened) -> None:
    """As a person's ctrl-C would: in the main thread, in the middle of an acquire."""
    files = FakeFiles()
    files.gate.clear()
    stream = opened(["stream"] * 3, files)

    def interrupt() -> None:
        until(lambda: stream._order.last == 0)
        time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        stream.acquire(0)
    thread.join()
    stream.release(0)  # as a hook that always runs would
    files.gate.set()
    pass_through(stream, [0, 1, 2, 0])


def test_a_dropped_read_that_is_wanted_again(opened: Opened) -> None:
    """While a buffer is being written, its unit is dropped, and then asked for after all."""
    files = FakeFiles()
    stream = opened(["stream"] * 6, files, slots=2)
    pass_through(stream, [0])
    until(lambda: len(files.checks) == 3)
    files.gate.clear()
    stream.acquire(1)
    stream.release(1)  # 3 is being read now, or about to be
    until(lambda: len(files.reads) == 4)
    results: list[object] = []

    def work() -> None:
        for index in (5, 3):  # 5 is a surprise
            results.append(holds(stream.acquire(index), index))
            stream.release(index)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: stream._order.last == 5)
    files.gate.set()
    thread.join(PATIENCE)
    assert results == [True, True]


def test_units_without_bytes(opened: Opened) -> None:
    stream = opened(["stream", "keep", "once"], FakeFiles(), nbytes=0)
    pass_through(stream, [0, 1, 2, 0, 0], 0)


def test_bytes_that_stay_are_counted_as_they_come(opened: Opened) -> None:
    stream = opened(["keep", "stream", "keep"], FakeFiles())
    pass_through(stream, [0, 1, 2])
    assert stream.loaded_bytes == 2 * 4096


def compacting(opened: Opened, count: int, *, slots: int = 2, nbytes: int = 8192, rest: int = 6144) -> Stream:
    """Units that are copied on into three quarters of their bytes, and one streamed unit at the end."""
    stays: list[str] = [*(["once"] * count), "stream"]
    groups = make_groups(stays, nbytes, rest)
    stream = Stream(FakeFiles(), groups, slots=slots, slot_bytes=nbytes)
    opened.streams.append(stream)
    stream.start()
    return stream


def test_what_becomes_smaller_is_read_ahead_into_the_room_it_will_take(opened: Opened) -> None:
    stream = compacting(opened, 12)
    # The k-th is copied when k - 1 have been: 6 k + 8 (n - k) <= 6 * 12 KiB up to n = 5. And two more are in the ring.
    until(lambda: sum(e.state == "ready" for e in stream._entries) >= 5 + 2)
    most = 0
    for index in range(12):
        assert holds(stream.acquire(index), index, 8192)
        copies = 6144 * (index + 1)
        own = sum(8192 for e in stream._entries if e.own and e.memory is not None)
        own += sum(memory.nbytes for memory in stream._used)
        most = max(most, copies + own)
        stream.release(index)
    assert most <= 12 * 6144
    pass_through(stream, [12, 12], 8192)
    assert stream.stats.mispredicted == 0


def test_what_turns_out_not_to_become_smaller_is_streamed(opened: Opened) -> None:
    stream = compacting(opened, 4)
    for index in range(4):
        stream.acquire(index)
        if index == 2:
            stream.stream_from_now(index)
        stream.release(index)
    for _ in range(3):
        pass_through(stream, [2, 4], 8192)
    with pytest.raises(OutsizeError, match="passed on already"):
        stream.acquire(1)
