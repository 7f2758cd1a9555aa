"""Who counts in a round: equal numbers, in turns, the same whoever asks."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from iotsplit.rounds import deal

devices = st.integers(1, 30).map(lambda count: [f"d{n}" for n in range(count)])
edges = st.integers(1, 6).map(lambda count: [f"e{n}" for n in range(count)])
seeds = st.integers(0, 1000)


@given(devices, edges, st.integers(1, 8), seeds, st.integers(1, 50))
def test_every_edge_serves_the_same_number(
    devices: list[str], edges: list[str], each: int, seed: int, round_: int
) -> None:
    dealt = deal(devices, edges, devices_per_edge=each, seed=seed, round_=round_)
    served = Counter(dealt.values())
    assert set(dealt) <= set(devices)
    assert set(served) <= set(edges)
    if len(devices) < len(edges):
        assert set(served.values()) == {1}
        assert len(dealt) == len(devices)
    else:
        assert [served[edge] for edge in edges] == [min(each, len(devices) // len(edges))] * len(edges)


@given(devices, edges, st.integers(1, 8), seeds)
def test_everyone_gets_the_same_number_of_turns(
    devices: list[str], edges: list[str], each: int, seed: int
) -> None:
    turns: Counter[str] = Counter()
    for round_ in range(1, len(devices) + 1):
        turns.update(list(deal(devices, edges, devices_per_edge=each, seed=seed, round_=round_)))
    assert len({turns[device] for device in devices}) == 1
    assert turns[devices[0]] >= 1


@given(devices, edges, st.integers(1, 3), seeds)
def test_no_edge_serves_more_than_it_has_room_for_and_devices_take_turns(
    devices: list[str], edges: list[str], room: int, seed: int
) -> None:
    rooms = {edges[0]: room}
    turns: Counter[str] = Counter()
    for round_ in range(1, len(devices) + 1):
        dealt = deal(devices, edges, devices_per_edge=None, rooms=rooms, seed=seed, round_=round_)
        served = Counter(dealt.values())
        assert served[edges[0]] <= room
        others = [served[edge] for edge in edges[1:]]
        assert max(others, default=0) - min(others, default=0) <= 1
        assert len(dealt) == (len(devices) if others else min(room, len(devices)))
        turns.update(list(dealt))
    assert len({turns[device] for device in devices}) == 1


@given(devices, edges, seeds, st.integers(1, 50))
def test_without_a_number_all_take_part_as_evenly_as_they_go(
    devices: list[str], edges: list[str], seed: int, round_: int
) -> None:
    dealt = deal(devices, edges, devices_per_edge=None, seed=seed, round_=round_)
    served = Counter(dealt.values())
    assert set(dealt) == set(devices)
    counts = [served[edge] for edge in edges]
    assert max(counts) - min(counts) <= 1


@given(devices, edges, st.none() | st.integers(1, 8), st.data())
def test_the_order_in_which_agents_came_does_not_matter(
    devices: list[str], edges: list[str], each: int | None, data: st.DataObject
) -> None:
    came = data.draw(st.permutations(devices)), data.draw(st.permutations(edges))
    one = deal(*came, devices_per_edge=each, seed=1, round_=2)
    other = deal(devices, edges, devices_per_edge=each, seed=1, round_=2)
    assert list(one.items()) == list(other.items())
    assert list(one) == sorted(one)


def test_edges_rotate_from_round_to_round() -> None:
    met = {
        deal(["d0", "d1"], ["e0", "e1"], devices_per_edge=1, seed=0, round_=round_)["d0"]
        for round_ in range(1, 10)
    }
    assert met == {"e0", "e1"}


def test_another_seed_deals_differently() -> None:
    names = [f"d{n}" for n in range(20)]
    dealt = [deal(names, ["e"], devices_per_edge=5, seed=seed, round_=1) for seed in (1, 2)]
    assert dealt[0] != dealt[1]


def test_nobody_is_dealt_where_nobody_is() -> None:
    assert deal([], ["e"], devices_per_edge=1, seed=0, round_=1) == {}
    assert deal(["d"], [], devices_per_edge=None, seed=0, round_=1) == {}
