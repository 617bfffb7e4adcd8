"""Registration: one living agent per node name, a restart recognised, a pulse that others can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from netplane.cluster.instance import Instance
from netplane.cluster.leases import NAMESPACE, live_nodes, rank
from netplane.cluster.nodes import Machine, Registrar
from netplane.model.base import Key, amend
from netplane.model.errors import Invalid, Unavailable
from netplane.model.nodes import Condition, Lease, Node, NodeAddress
from tests.cluster_world import World


class Clock:
    """Wall and monotonic time that a test moves, together or apart."""

    def __init__(self) -> None:
        self.wall, self.mono = 1_800_000_000.0, 50.0

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


def machine(instance: str = "one", node: str = "node-a") -> Machine:
    return Machine(node, ("192.0.2.1", "2001:db8::1"), 1500, "host-a", "boot-1", instance)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world() -> World:
    return World()


def registrar(world: World, clock: Clock, instance: str = "one", node: str = "node-a") -> Registrar:
    return Registrar(world, machine(instance, node), lambda: clock.wall, lambda: clock.mono)


def lease(world: World, node: str = "node-a") -> Lease:
    found = world.get(Key("Lease", NAMESPACE, node))
    assert isinstance(found, Lease)
    return found


def test_a_node_describes_itself(world: World, clock: Clock) -> None:
    node = registrar(world, clock).register()
    assert node.internal_ips == ("192.0.2.1", "2001:db8::1")
    assert [a.address for a in node.status.addresses if a.type == "Hostname"] == ["host-a"]
    assert node.metadata.annotations["netplane.io/underlay-mtu"] == "1500"
    assert [(c.type, c.status) for c in node.status.conditions] == [("Ready", "True")]
    assert node.status.node_info == {"bootID": "boot-1"}
    assert lease(world).spec.lease_duration_seconds == 40
    assert lease(world).metadata.owner_references[0].uid == node.metadata.uid


def test_what_others_wrote_stays_and_what_is_ours_follows_the_machine(world: World, clock: Clock) -> None:
    node = registrar(world, clock).register()
    status = amend(
        node.status,
        addresses=(*node.status.addresses, NodeAddress(type="ExternalIP", address="198.51.100.1")),
        conditions=(*node.status.conditions, Condition(type="DiskPressure", status="False")),
    )
    spec = amend(node.spec, pod_cidr="10.244.3.0/24", pod_cidrs=("10.244.3.0/24",))
    world.put(amend(node, status=status, spec=spec))
    moved = Machine("node-a", ("192.0.2.9",), 9000, "host-a", "boot-1", "one")
    after = Registrar(world, moved, lambda: clock.wall, lambda: clock.mono).register()
    assert after.internal_ips == ("192.0.2.9",) and after.pod_cidrs == ("10.244.3.0/24",)
    assert after.metadata.annotations["netplane.io/underlay-mtu"] == "9000"
    assert {a.type for a in after.status.addresses} == {"InternalIP", "Hostname", "ExternalIP"}
    assert {c.type for c in after.status.conditions} == {"Ready", "DiskPressure"}


def test_a_beat_touches_the_lease_alone(world: World, clock: Clock) -> None:
    agent = registrar(world, clock)
    agent.register()
    seen = len(world.events)
    clock.sleep(10)
    agent.beat()
    assert [event.object.KIND for event in world.events[seen:]] == ["Lease"]


def test_a_removed_node_comes_back_with_the_next_beat(world: World, clock: Clock) -> None:
    agent = registrar(world, clock)
    world.delete(agent.register().key)
    agent.beat()
    assert world.get(Key("Node", "", "node-a")) is not None


def test_a_second_agent_of_the_same_name_is_refused(world: World, clock: Clock) -> None:
    registrar(world, clock).register()
    clock.sleep(5)
    seen = len(world.events)
    with pytest.raises(Invalid, match=r"node-a is in use by node-a_one since 2027-.*last heard of 5 s ago"):
        registrar(world, clock, "two").register()
    assert len(world.events) == seen


def test_a_lease_that_ran_out_is_taken_at_once_and_the_old_holder_told(world: World, clock: Clock) -> None:
    old = registrar(world, clock)
    old.register()
    clock.sleep(41)
    registrar(world, clock, "two").register()
    assert lease(world).spec.lease_transitions == 1
    with pytest.raises(Invalid, match="node-a was taken over by node-a_two"):
        old.beat()


def test_a_restart_after_kill_9_is_recognised(world: World, clock: Clock) -> None:
    registrar(world, clock).register()
    clock.sleep(1)
    registrar(world, clock).register()
    assert lease(world).spec.lease_transitions == 0


def test_a_clean_end_frees_the_name(world: World, clock: Clock) -> None:
    agent = registrar(world, clock)
    agent.register()
    agent.release()
    assert live_nodes(world.snapshot, clock.wall) == []
    registrar(world, clock, "two").register()


def test_a_copied_state_directory_is_noticed(world: World, clock: Clock) -> None:
    first, copy = registrar(world, clock), registrar(world, clock)
    first.register()
    clock.sleep(1)
    copy.register()
    with pytest.raises(Invalid, match="its state directory was copied"):
        first.beat()


def test_a_beat_whose_answer_was_lost_is_our_own(world: World, clock: Clock) -> None:
    agent = registrar(world, clock)
    agent.register()
    put = world.put

    def lossy(obj: object, expect: int | None = None) -> object:
        put(obj, expect)  # type: ignore[arg-type]
        raise Unavailable("the connection broke")

    world.put = lossy  # type: ignore[method-assign]
    clock.sleep(10)
    with pytest.raises(Unavailable):
        agent.beat()
    world.put = put  # type: ignore[method-assign]
    clock.sleep(10)
    agent.beat()


def test_a_lease_from_the_future_is_watched_before_it_is_believed(world: World, clock: Clock) -> None:
    ahead = Clock()
    ahead.wall += 86_400
    other = registrar(world, ahead, "other")
    other.register()
    mine = registrar(world, clock, "mine")
    with pytest.raises(Unavailable, match="a clock jumped"):
        mine.register()
    clock.sleep(39)
    ahead.sleep(39)
    other.beat()  # it lives
    with pytest.raises(Unavailable):
        mine.register()
    clock.sleep(39)
    with pytest.raises(Unavailable):
        mine.register()
    clock.sleep(2)
    mine.register()  # it has not stirred for its whole duration
    assert lease(world).spec.holder_identity == "node-a_mine"


def test_the_rank_counts_live_nodes_of_lower_name(world: World, clock: Clock) -> None:
    agents = {name: registrar(world, clock, node=name) for name in ("a", "b", "c")}
    for agent in agents.values():
        agent.register()
    assert [rank(world.snapshot, n, clock.wall) for n in ("a", "b", "c")] == [0, 1, 2]
    clock.sleep(30)
    agents["b"].beat()
    agents["c"].beat()
    clock.sleep(15)
    assert live_nodes(world.snapshot, clock.wall) == ["b", "c"]
    assert [rank(world.snapshot, n, clock.wall) for n in ("b", "c")] == [0, 1]


def test_an_instance_survives_its_process_and_is_locked_while_it_lives(tmp_path: Path) -> None:
    first = Instance(tmp_path / "state")
    with pytest.raises(Invalid, match="in use by another agent"):
        Instance(tmp_path / "state")
    first.close()
    again, other = Instance(tmp_path / "state"), Instance(tmp_path / "elsewhere")
    assert again.id == first.id != other.id
    again.close()
    other.close()


def test_a_torn_instance_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "instance").write_text("abc")
    made = Instance(tmp_path)
    assert len(made.id) == 32 and made.id != "abc"
    made.close()


def test_a_state_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"Not a directory|File exists"):
        Instance(tmp_path / "file" / "state")


def test_the_node_s_pod_cidr_is_not_the_registrar_s(world: World, clock: Clock) -> None:
    node = registrar(world, clock).register()
    assert isinstance(node, Node) and node.pod_cidrs == ()
