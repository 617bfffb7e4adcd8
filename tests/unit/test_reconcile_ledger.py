"""The ledger: differences, shared facts, conflicts, orphans."""

from __future__ import annotations

import pytest

from netplane.model.errors import Conflict
from netplane.model.facts import Address, Element, Fact, Scope
from netplane.reconcile.ledger import Ledger

A, B = Scope("services", "default/a"), Scope("services", "default/b")


def element(port: int, value: str = "goto lb1") -> Element:
    return Element(of="svc", item=("10.96.0.1", "tcp", port), value=(value,))


def settled(ledger: Ledger, **updates: Fact) -> None:
    ledger.commit(ledger.difference({Scope("services", k): (v,) for k, v in updates.items()}))


def test_new_changed_gone_and_the_same() -> None:
    ledger = Ledger()
    first = ledger.difference({A: (element(80), element(443), element(53))})
    assert len(first.plan.add) == 3
    ledger.commit(first)
    second = ledger.difference({A: (element(80), element(443, "goto lb2"), element(8080))})
    assert second.plan.add == (element(8080),)
    assert second.plan.change == (element(443, "goto lb2"),)
    assert second.plan.remove == (element(53).key,)
    ledger.commit(second)
    assert not ledger.difference({A: (element(80), element(443, "goto lb2"), element(8080))}).plan


def test_a_full_pass_leaves_one_copy_of_each_key_and_fact() -> None:
    """What the driver observes and what is rendered again are equal objects; those of before stay."""
    ledger = Ledger()
    ledger.commit(ledger.difference({A: (element(80),)}))
    (key,) = ledger.have
    held = ledger.have[key]
    ledger.reset({element(80).key: held})
    ledger.commit(ledger.difference({A: (element(80),)}))
    assert next(iter(ledger.have)) is key and ledger.have[key] is held
    assert next(iter(ledger._holders)) is key and ledger._claims[A][0] is key


def test_a_shared_fact_stays_until_nobody_wants_it() -> None:
    ledger = Ledger()
    shared = element(80)
    both = ledger.difference({A: (shared,), B: (shared,)})
    assert both.plan.add == (shared,)
    ledger.commit(both)
    one = ledger.difference({A: ()})
    assert not one.plan
    ledger.commit(one)
    assert ledger.difference({B: ()}).plan.remove == (shared.key,)


def test_what_somebody_else_changed_comes_back_for_one_holder_and_is_nobody_s_new_shape() -> None:
    ledger, shared, other = Ledger(), element(80), element(80, "goto theirs")
    ledger.commit(ledger.difference({A: (shared,), B: (shared,)}))
    for _ in range(2):  # and it still is so at the next look
        ledger.reset({shared.key: other.mark})
    with pytest.raises(Conflict, match="another shape"):
        ledger.difference({A: (element(80, "goto lb2"),)})
    mended = ledger.difference({A: (shared,)})
    assert mended.plan.change == (shared,)
    ledger.commit(mended)
    assert not ledger.difference({B: (shared,)}).plan
    with pytest.raises(Conflict, match="another shape"):
        ledger.difference({A: (other,)})


def test_what_the_driver_cannot_see_goes_though_it_was_not_observed() -> None:
    """A macvlan lies in the pod's namespace: a DEL just after a look must take it away, too."""
    ledger = Ledger(unseen=lambda key: bool(key[1]))
    inside, seen = Address(link="eth0", address="10.0.0.2/24", netns="/n"), Address("lo", "10.0.0.3/32")
    ledger.commit(ledger.difference({A: (inside, seen)}))
    ledger.reset({})
    assert ledger.difference({A: ()}).plan.remove == (inside.key,)


def test_a_shared_fact_dropped_by_all_at_once_goes_once() -> None:
    ledger = Ledger()
    shared = element(80)
    ledger.commit(ledger.difference({A: (shared,), B: (shared,)}))
    assert ledger.difference({A: (), B: ()}).plan.remove == (shared.key,)


def test_a_fact_that_moves_from_one_scope_to_another_is_untouched() -> None:
    ledger = Ledger()
    ledger.commit(ledger.difference({A: (element(80),)}))
    assert not ledger.difference({A: (), B: (element(80),)}).plan


@pytest.mark.parametrize("together", [True, False], ids=["one change", "one after the other"])
def test_two_scopes_that_want_different_things_under_one_key_conflict(together: bool) -> None:
    ledger = Ledger()
    updates = {A: (element(80),), B: (element(80, "drop"),)}
    if together:
        with pytest.raises(Conflict, match=r"default/b.*svc 10\.96\.0\.1 \. tcp \. 80"):
            ledger.difference(updates)
        return
    ledger.commit(ledger.difference({A: updates[A]}))
    with pytest.raises(Conflict, match="default/a"):
        ledger.difference({B: updates[B]})


def test_what_is_observed_and_wanted_is_adopted_and_the_rest_is_orphaned() -> None:
    ledger = Ledger()
    stray = Address(link="npbr0", address="10.9.9.9/24")
    ledger.reset({element(80).key: element(80).mark, stray.key: stray.mark})
    difference = ledger.difference({A: (element(80),)})
    assert not difference.plan
    ledger.commit(difference)
    assert ledger.orphans().remove == (stray.key,)
