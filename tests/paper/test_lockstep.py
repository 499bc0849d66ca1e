"""Functions that run one at a time and are answered together."""

import threading
from concurrent.futures import Future

import pytest

from etpo_paper.base.lockstep import Lockstep


def test_requests_are_answered_together_and_only_one_function_runs_at_a_time():
    asked, order, inside = [], [], []

    def answer(requests):
        asked.append(list(requests))
        return [10 * r for r in requests]

    def function(name, requests):
        def run(ask):
            for request in requests:
                inside.append(name)
                assert len(inside) == 1
                order.append((name, request))
                inside.pop()
                assert ask(request) == 10 * request

        return run

    assert Lockstep(answer).run([function("a", [1, 2, 3]), function("b", [4]), function("c", [])]) == [None] * 3
    assert asked == [[1, 4], [2], [3]]
    assert order == [("a", 1), ("b", 4), ("a", 2), ("a", 3)]


def test_an_exception_of_one_does_not_disturb_the_others():
    def fails(ask):
        ask(1)
        raise ValueError("one")

    done = []

    def goes_on(ask):
        done.extend(ask(i) for i in range(3))

    first, second = Lockstep(lambda requests: requests).run([fails, goes_on])
    assert str(first) == "one" and second is None and done == [0, 1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_where_answering_fails_all_functions_are_ended(error):
    ended = []

    def function(ask):
        try:
            ask(1)
        finally:
            ended.append(1)

    def answer(requests):
        raise error

    before = threading.active_count()
    with pytest.raises(error):
        Lockstep(answer).run([function, function])
    assert ended == [1, 1] and threading.active_count() == before


def test_while_one_waits_for_a_future_the_others_go_on():
    outside, order = Future(), []

    def waits(ask):
        order.append(ask(outside))
        order.append(ask("last"))

    def works(ask):
        order.extend(ask(i) for i in range(3))
        outside.set_result("done")
        order.append(ask("more"))

    assert Lockstep(lambda requests: requests).run([waits, works]) == [None, None]
    assert order[:4] == [0, 1, 2, "done"] and sorted(order[4:]) == ["last", "more"]


def test_a_future_that_fails_is_an_error_of_the_one_that_waits_for_it():
    outside = Future()
    outside.set_exception(ValueError("outside"))
    done = []
    first, second = Lockstep(lambda requests: requests).run([lambda ask: ask(outside), lambda ask: done.append(ask(1))])
    assert str(first) == "outside" and second is None and done == [1]
