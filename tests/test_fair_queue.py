"""The queue: bounded, nothing lost, nothing twice, and nobody is passed more than once."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from engine.fair_queue import FairQueue


@dataclass(frozen=True)
class Waiting:
    id: str
    fan: str


def fill(fans, limit=100, per_fan=100):
    queue = FairQueue(limit, per_fan)
    tickets = [Waiting(str(i), fan) for i, fan in enumerate(fans)]
    return queue, [ticket for ticket in tickets if queue.put(ticket)]


def anyone(_ticket):
    return True


def serve(queue, ready=anyone):
    ticket = queue.peek(ready)
    if ticket:
        queue.take(ticket)
    return ticket


def drain(queue):
    return list(iter(lambda: serve(queue), None))


def test_each_fan_has_a_turn_before_anybody_has_a_second_one():
    queue, _ = fill("aaab")
    assert [ticket.id for ticket in drain(queue)] == ["0", "3", "1", "2"]


def test_a_newcomer_waits_for_one_turn_of_each_other_fan():
    queue, _ = fill("aaabb")
    serve(queue)
    newcomer = Waiting("new", "c")
    queue.put(newcomer)
    assert [ticket.fan for ticket in drain(queue)] == ["b", "a", "c", "b", "a"]


def test_positions_are_the_order_of_service():
    queue, _ = fill("aababccd")
    assert list(queue) == drain(queue)


def test_the_whole_queue_and_each_fan_have_a_bound():
    queue, inside = fill("aaaabbbb", limit=5, per_fan=3)
    assert "".join(ticket.fan for ticket in inside) == "aaabb"
    assert len(queue) == 5


def test_who_is_not_ready_keeps_the_turn():
    queue, (first, second) = fill("ab")
    assert serve(queue, lambda ticket: ticket is not first) is second
    queue.put(Waiting("later", "b"))
    assert serve(queue) is first


def test_a_later_request_of_a_fan_may_go_while_the_first_cannot():
    queue, (first, second) = fill("aa")
    assert serve(queue, lambda ticket: ticket is not first) is second
    assert list(queue) == [first]


def test_nothing_ready_gives_nothing():
    queue, _ = fill("ab")
    assert queue.peek(lambda _: False) is None
    assert len(queue) == 2


def test_removing_twice_says_so():
    queue, (first, second) = fill("aa")
    assert queue.remove(first)
    assert not queue.remove(first)
    assert list(queue) == [second]


FANS = st.sampled_from("abcd")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), FANS),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(ACTIONS, st.integers(1, 8), st.integers(1, 4))
def test_bounds_hold_and_nothing_is_lost_or_served_twice(actions, limit, per_fan):
    queue = FairQueue(limit, per_fan)
    waiting: list[Waiting] = []
    for number, (action, what) in enumerate(actions):
        if action == "put":
            ticket = Waiting(str(number), what)
            mine = sum(other.fan == what for other in waiting)
            assert queue.put(ticket) == (len(waiting) < limit and mine < per_fan)
            if len(waiting) < limit and mine < per_fan:
                waiting.append(ticket)
        elif action == "take":
            ticket = serve(queue)
            assert (ticket is None) == (not waiting)
            if ticket:
                # First come, first served within a fan.
                assert ticket == next(other for other in waiting if other.fan == ticket.fan)
                waiting.remove(ticket)
        elif waiting:
            ticket = waiting.pop(what % len(waiting))
            assert queue.remove(ticket)
        assert len(queue) == len(waiting)
        assert sorted(ticket.id for ticket in queue) == sorted(ticket.id for ticket in waiting)


@given(ACTIONS)
def test_no_fan_waits_for_two_turns_of_another(actions):
    queue = FairQueue(1000, 1000)
    passed: dict[str, list[str]] = {}  # who was served since this fan began to wait
    for number, (action, what) in enumerate(actions):
        if action == "put":
            queue.put(Waiting(str(number), what))
            passed.setdefault(what, [])
        elif action == "take" and (ticket := serve(queue)):
            del passed[ticket.fan]
            for fan, served in passed.items():
                served.append(ticket.fan)
                assert len(served) == len(set(served)), f"{fan} was passed twice: {served}"
            if any(other.fan == ticket.fan for other in queue):
                passed[ticket.fan] = []
