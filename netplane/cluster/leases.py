"""Who is alive, and who acts first.

Every agent runs every controller. The live nodes rank by name: the first acts at once, the others a
little later and only if it is still needed; so a dead first node costs a delay and never a decision.
Two that act at once are harmless (writes carry `expect`); the rank only spares the conflicts.
"""

from __future__ import annotations

from datetime import UTC, datetime

from ..model.nodes import Lease
from ..model.snapshot import Snapshot

NAMESPACE = "kube-node-lease"
RENEW_SECONDS = 10
DURATION_SECONDS = 40


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 with microseconds (meta/v1 MicroTime)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_of(text: str) -> float:
    """The reverse; 0.0 for what is no time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def expires(lease: Lease) -> float:
    """When the lease runs out, in seconds since the epoch; 0.0 when nobody holds it."""
    if not lease.spec.holder_identity:
        return 0.0
    return seconds_of(lease.spec.renew_time) + (lease.spec.lease_duration_seconds or DURATION_SECONDS)


def live_nodes(snapshot: Snapshot, now: float) -> list[str]:
    """The nodes whose lease has not run out at ``now`` (seconds since the epoch), by name."""
    leases = snapshot.list(Lease, NAMESPACE)
    return sorted(lease.name for lease in leases if expires(lease) > now)


def rank(snapshot: Snapshot, node: str, now: float) -> int:
    """How many live nodes act before ``node``; it counts as live itself, whatever its lease says."""
    return sum(1 for other in live_nodes(snapshot, now) if other < node)
