"""What is expected next, from what was asked for."""

from outsize.store.access_order import AccessOrder


def asked(order, *indexes):
    found = []
    for index in indexes:
        found.append(order.asked_for(index))
        order.released()
    return found


def test_the_order_of_the_list_is_expected_again_and_again():
    order = AccessOrder(4, lambda index: False)
    assert asked(order, 0, 1, 2, 3, 0, 1) == [True] * 6
    assert order.ahead() == [2, 3, 0, 1]


def test_one_surprise_changes_nothing_and_two_in_a_row_do():
    order = AccessOrder(4, lambda index: False)  # an encoder 0, 1 and a decoder 2, 3
    order.follow_last_with(2)
    assert asked(order, 0, 1, 2, 3, 2, 3) == [True] * 6
    assert asked(order, 0, 1, 2, 3, 2) == [False, True, True, True, True]  # another prompt
    assert asked(order, 3, 0, 1, 2, 3, 0) == [True, False, True, True, True, False]  # a prompt after every token
    assert asked(order, 1, 2, 3, 0) == [True, True, True, True]


def test_groups_that_are_settled_are_passed_over():
    settled = {1, 2}
    order = AccessOrder(4, lambda index: index in settled)
    assert asked(order, 0, 3, 0) == [True, True, True]
    settled.update({0, 3})
    order.asked_for(0)
    order.released()  # all of them are: no search without an end


def test_nothing_is_expected_after_the_last_sweep():
    order = AccessOrder(3, lambda index: False)
    order.past_end = False
    assert order.ahead() == [0, 1, 2]
    assert asked(order, 0) == [True]
    assert order.ahead() == [1, 2]
    assert asked(order, 1, 2) == [True, True]
    assert order.ahead() == []


def test_a_model_without_groups_expects_none():
    assert AccessOrder(0, lambda index: False).ahead() == []
