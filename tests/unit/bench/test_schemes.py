"""Schemes as placements of the same roles, and the cells of a comparison."""

from hypothesis import given
from hypothesis import strategies as st

from iotsplit.bench.cells import ALL, grid
from iotsplit.bench.estimate import Model, needed
from iotsplit.bench.schemes import Placement, Scheme, place
from iotsplit.plan import cut_model
from iotsplit.settings import TrainingSettings

SMOLLM2 = Model(layers=30, width=576, vocabulary=49152, parameters=134_515_008, trainable=921_600)
IMPORTS = {"device": 200_000_000, "edge": 200_000_000, "cloud": 220_000_000}


def batches(placement: Placement) -> int:
    """That all devices train on in the whole run."""
    training = placement.training
    at_once = placement.devices_per_edge or placement.devices
    return at_once * training.rounds * training.local_steps


@given(
    scheme=st.sampled_from(Scheme),
    devices=st.integers(1, 9),
    rounds=st.integers(1, 5),
    local_steps=st.integers(1, 7),
)
def test_every_scheme_trains_on_as_many_batches(
    scheme: Scheme, devices: int, rounds: int, local_steps: int
) -> None:
    training = TrainingSettings(rounds=rounds, local_steps=local_steps)
    placement = place(scheme, training, layers=30, devices=devices, edges=2)
    assert batches(placement) == devices * rounds * local_steps
    cut_model(30, placement.training.cut, placement.training.labels)


def test_each_scheme_has_its_places() -> None:
    training = TrainingSettings(cut=(4, 15))
    places = {scheme: place(scheme, training, layers=30, devices=4, edges=2) for scheme in Scheme}
    found = {
        scheme: (each.devices, each.edges, each.training.cut, each.pooled) for scheme, each in places.items()
    }
    assert found == {
        Scheme.SPLITLLM: (4, 2, (4, 15), False),
        Scheme.SFL: (4, 4, (4, 30), False),
        Scheme.SL: (4, 1, (4, 30), False),
        Scheme.FL: (4, 0, (30, 30), False),
        Scheme.CENTRAL: (1, 0, (30, 30), True),
    }
    assert places[Scheme.SL].devices_per_edge == 1


def test_cells_come_case_by_case_and_each_has_a_name_of_its_own() -> None:
    cells = grid(
        [Scheme.SPLITLLM, Scheme.FL],
        partitions=["files", "dirichlet:0.3"],
        samples=[32, ALL],
        devices=[2, 8],
        links=[0, 5],
        seeds=[0, 1],
    )
    assert len(cells) == len({cell.name for cell in cells}) == 64
    assert [cell.scheme for cell in cells[:2]] == [Scheme.SPLITLLM, Scheme.FL]
    assert cells[0].case == cells[1].case
    assert cells[0].name == "files-32-2dev-seed0-splitllm"
    assert all(cell.name.replace(".", "").replace("-", "").isalnum() for cell in cells)


def test_memory_is_expected_where_it_goes() -> None:
    training = TrainingSettings(cut=(4, 15), target_modules=("all-linear",))
    expected = {
        scheme: needed(place(scheme, training, layers=30, devices=4, edges=2), SMOLLM2, IMPORTS)
        for scheme in Scheme
    }
    devices = {
        scheme: each["device"] / (1 if scheme is Scheme.CENTRAL else 4) for scheme, each in expected.items()
    }
    servers = {scheme: each.get("edge", 0) + each["cloud"] for scheme, each in expected.items()}
    assert devices[Scheme.SPLITLLM] == devices[Scheme.SFL] < devices[Scheme.FL] / 3
    assert devices[Scheme.FL] == devices[Scheme.CENTRAL]
    assert servers[Scheme.FL] < servers[Scheme.SL] < servers[Scheme.SPLITLLM] < servers[Scheme.SFL]
    assert "edge" not in expected[Scheme.FL]
