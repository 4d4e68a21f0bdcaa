"""One assignment for given choices."""

from planner.shapes import GIB

from outsize.planner.placement import Choice, Space, Tier, Unit, place, spread

NO_LIMIT = 1 << 60


def block(index, size=10, **about):
    return unit(index, "block", size, **about)


def unit(index, kind, size, slot=None, kv=0, **about):
    return Unit(index, kind, size, slot_bytes=size if slot is None else slot, kv_bytes=kv, ram_bytes=size, **about)


def blocks(count, size=10):
    return [block(i, size) for i in range(count)]


def tier(name, room, limit=NO_LIMIT):
    return Tier(name, room, limit)


def letters(homes):
    return "".join(home[0] if home in ("ram", "disk") else home[-1] for home in homes)


def test_spread_is_even_and_complete():
    units = blocks(12)
    assert spread(units, 3) == {2, 6, 10}
    assert spread(units, 12) == set(range(12))
    assert len(spread(units, 7)) == 7


def test_gpus_hold_runs_and_ram_the_rest():
    gpus = [tier("gpu0", 25), tier("gpu1", 30)]
    homes = place(blocks(8), tier("ram", 100), gpus, Choice("ram", ("gpu0", "gpu1", "ram"), "first", 2))
    assert letters(homes) == "00111rrr"
    homes = place(blocks(8), tier("ram", 100), gpus, Choice("ram", ("gpu1", "gpu0", "ram"), "last", 2))
    assert letters(homes) == "rrr00111"


def test_a_gpu_after_ram_takes_what_ram_cannot():
    gpu = [tier("gpu0", 30)]
    assert letters(place(blocks(8), tier("ram", 80), gpu, Choice("ram", ("ram", "gpu0"), "first", 2))) == "rrrrrrrr"
    # The ring through which they reach the GPU takes 20.
    assert letters(place(blocks(8), tier("ram", 79), gpu, Choice("ram", ("ram", "gpu0"), "first", 2))) == "rrrrr000"
    assert letters(place(blocks(8), tier("ram", 69), gpu, Choice("ram", ("ram", "gpu0"), "first", 2))) == "rrdrr000"


def test_the_fewest_blocks_are_streamed_evenly_spread_and_the_ring_fits():
    homes = place(blocks(12), tier("ram", 100), [], Choice("ram", ("ram",), "first", 2))
    assert letters(homes) == "rdrrdrrdrrdr"  # eight resident and two slots
    homes = place(blocks(12), tier("ram", 100), [], Choice("ram", ("ram",), "first", 4))
    assert letters(homes).count("r") == 6


def test_nothing_is_placed_where_even_the_ring_does_not_fit():
    assert place(blocks(12), tier("ram", 19), [], Choice("ram", ("ram",), "first", 2)) is None
    assert letters(place(blocks(12), tier("ram", 20), [], Choice("ram", ("ram",), "first", 2))) == "d" * 12


def test_a_weight_limit_of_nothing_streams_all_but_what_is_looked_up():
    units = [
        unit(0, "lookup", 40, 40, 0, rows=True),
        block(1),
        unit(2, "small", 1, 1, 0),
        unit(3, "head", 20, 20, 0),
    ]
    assert letters(place(units, tier("ram", 100, 0), [], Choice("disk", ("ram",), "first", 2))) == "dddd"
    assert place(units, tier("ram", 100, 0), [], Choice("ram", ("ram",), "first", 2)) is None
    assert letters(place(units, tier("ram", 100), [], Choice("ram", ("ram",), "first", 2))) == "rrrr"


def test_the_cache_lies_where_the_block_computes():
    units = [unit(i, "block", 10, 10, 5) for i in range(4)]
    gpu = [tier("gpu0", 30)]
    # 20 for the weights of two, 10 for their cache, 20 for the ring through which the others reach the GPU.
    assert letters(place(units, tier("ram", 50), gpu, Choice("ram", ("gpu0", "ram"), "first", 2))) == "00rr"
    assert letters(place(units, tier("ram", 49), gpu, Choice("ram", ("gpu0", "ram"), "first", 2))) == "00rd"
    assert place(units, tier("ram", 29), gpu, Choice("ram", ("gpu0", "ram"), "first", 2)) is None


def test_what_is_copied_in_ram_passes_the_ring():
    units = [unit(i, "block", 10, 8, 0, copied=True) for i in range(3)]
    assert letters(place(units, tier("ram", 46), [], Choice("ram", ("ram",), "first", 2))) == "rrr"
    assert letters(place(units, tier("ram", 45), [], Choice("ram", ("ram",), "first", 2))) == "rdr"
    units.append(unit(3, "lookup", 5, 5, 0, rows=True, copied=True))
    assert letters(place(units, tier("ram", 90), [], Choice("ram", ("ram",), "first", 2))) == "rrrd"


def test_what_decode_does_not_touch_is_streamed_first_and_gets_a_gpu_last():
    units = [block(i, every_token=i >= 4) for i in range(8)]
    assert letters(place(units, tier("ram", 60), [], Choice("ram", ("ram",), "first", 2))) == "ddddrrrr"
    homes = place(units, tier("ram", 100), [tier("gpu0", 50)], Choice("ram", ("gpu0", "ram"), "first", 2))
    assert letters(homes) == "0rrr0000"


def test_norms_follow_their_neighbours_and_small_embeddings_stay():
    units = [block(0), unit(1, "small", 1, 1, 0), unit(2, "small", 3, 3, 0, rows=True), unit(3, "small", 1, 1, 2)]
    homes = place(units, tier("ram", 100), [tier("gpu0", 12)], Choice("ram", ("gpu0", "ram"), "first", 2))
    assert letters(homes) == "00rr"


def test_shared_embeddings_are_kept_whole_where_there_is_room():
    units = [unit(0, "lookup", 40, 40, 0), block(1), block(2)]
    gpu = [tier("gpu0", 50)]
    assert letters(place(units, tier("ram", 100), gpu, Choice("ram", ("gpu0", "ram"), "first", 2))) == "r00"
    assert letters(place(units, tier("ram", 30), gpu, Choice("ram", ("gpu0", "ram"), "first", 2))) == "00r"
    assert letters(place(units, tier("ram", 90, 0), [], Choice("ram", ("ram",), "first", 2))) == "ddd"


def test_large_embeddings_are_kept_only_beside_nothing_streamed():
    units = [unit(0, "lookup", 40, 40, 0, rows=True), *(block(i) for i in range(1, 5))]
    assert letters(place(units, tier("ram", 80), [], Choice("ram", ("ram",), "first", 2))) == "rrrrr"
    assert letters(place(units, tier("ram", 79), [], Choice("ram", ("ram",), "first", 2))) == "drrrr"
    assert letters(place(units, tier("ram", 30), [], Choice("ram", ("ram",), "first", 2))).count("d") == 4


def test_where_sizes_differ_small_ones_are_streamed_because_their_ring_is_small():
    sizes = [10, 30, 10, 30, 10, 30]
    units = [block(i, size) for i, size in enumerate(sizes)]
    assert letters(place(units, tier("ram", 110), [], Choice("ram", ("ram",), "first", 2))) == "drdrdr"
    # Room for 45 beside a ring of large ones: the even spread takes all three, of which a small one can replace none.
    assert letters(place(units, tier("ram", 105), [], Choice("ram", ("ram",), "first", 2))) == "rdrdrd"


def test_where_sizes_differ_streamed_ones_come_back_or_are_exchanged_while_they_fit():
    units = [block(i, size) for i, size in enumerate([10, 40, 10, 10, 10, 40])]
    homes = place(units, tier("ram", 140, 80), [], Choice("ram", ("ram",), "first", 1))
    streamed = sum(u.resident_bytes for u, home in zip(units, homes, strict=True) if home == "disk")
    assert streamed == 40
    largest = place(units, tier("ram", 200), [tier("gpu0", 85)], Choice("ram", ("gpu0", "ram"), "largest", 2))
    assert letters(largest) == "r0rrr0"


def test_taking_is_all_or_nothing():
    space = Space([tier("ram", GIB, 10)])
    assert not space.take("ram", 11)
    assert not space.take("ram", 5, GIB)
    assert space.take("ram", 10, 5)
    assert space.room["ram"] == GIB - 15
