"""The cut of a model into three parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsplit.errors import UsageError
from iotsplit.plan import Labels, PartPlan, Tier, cut_model


@given(st.lists(st.integers(1, 200), min_size=3, max_size=3, unique=True).map(sorted), st.sampled_from(Labels))
def test_every_layer_is_owned_once_in_order(places: list[int], labels: Labels) -> None:
    low, high, layers = places
    plans = cut_model(layers, (low, high), labels)
    owned = [layer for tier in Tier for layer in plans[tier].layers]
    assert owned == list(range(layers))
    assert all(plans[tier].layers for tier in Tier)


@pytest.mark.parametrize(("labels", "owner"), [(Labels.CLOUD, Tier.CLOUD), (Labels.DEVICE, Tier.DEVICE)])
def test_the_head_is_where_the_labels_are(labels: Labels, owner: Tier) -> None:
    plans = cut_model(30, (4, 15), labels)
    assert [tier for tier in Tier if plans[tier].head] == [owner]
    assert [tier for tier in Tier if plans[tier].embedding] == [Tier.DEVICE]


@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("cut", [(0, 5), (5, 5), (6, 5), (0, 10), (-1, 5), (5, 11), (0, 0), (11, 11), (-1, -1)])
def test_a_cut_that_is_none_is_refused(cut: tuple[int, int], labels: Labels) -> None:
    with pytest.raises(UsageError, match="does not split 10 layers"):
        cut_model(10, cut, labels)


def test_two_tiers_leave_the_cloud_the_head() -> None:
    plans = cut_model(10, (3, 10), Labels.CLOUD)
    assert {tier: str(plans[tier]) for tier in Tier} == {
        Tier.DEVICE: "0-2",
        Tier.EDGE: "3-9",
        Tier.CLOUD: "head",
    }
    with pytest.raises(UsageError, match="leaves the cloud nothing"):
        cut_model(10, (3, 10), Labels.DEVICE)


def test_one_tier_has_the_whole_model() -> None:
    plans = cut_model(10, (10, 10), Labels.DEVICE)
    assert [str(plans[tier]) for tier in Tier] == ["0-9 + head", "none", "none"]
    with pytest.raises(UsageError, match="and the labels in the cloud"):
        cut_model(10, (10, 10), Labels.CLOUD)


def test_parts_are_named_by_their_first_and_last_layer() -> None:
    assert str(PartPlan(first=0, end=4, embedding=True)) == "0-3"
    assert str(PartPlan(first=15, end=30, head=True)) == "15-29 + head"
