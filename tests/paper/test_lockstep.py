"""Functions that run one at a time and are answered together."""

import threading

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
