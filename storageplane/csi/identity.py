"""The Identity service: who we are and what we can do."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from .. import names
from .depot import Depot
from .protocol import message, number

DRIVER = names.CSI
TOPOLOGY = "topology.storageplane.io/node"
_SERVICES = (
    "CONTROLLER_SERVICE", "VOLUME_ACCESSIBILITY_CONSTRAINTS", "GROUP_CONTROLLER_SERVICE",
    "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS",
)  # fmt: skip


class Identity:
    def __init__(self, depot: Depot, name: str = DRIVER) -> None:
        self._depot = depot
        self._info = message("GetPluginInfoResponse")(name=name, vendor_version=version("netplane"))

    def GetPluginInfo(self, _request: Any) -> Any:
        return self._info

    def GetPluginCapabilities(self, _request: Any) -> Any:
        found = [{"service": {"type": number("PluginCapability.Service.Type", name)}} for name in _SERVICES]
        found.append(
            {"volume_expansion": {"type": number("PluginCapability.VolumeExpansion.Type", "ONLINE")}}
        )
        return message("GetPluginCapabilitiesResponse")(capabilities=found)

    def Probe(self, _request: Any) -> Any:
        """Ready when every record can be read: a damaged one makes room for mistakes."""
        shelves = (self._depot.volumes, self._depot.snapshots, self._depot.groups)
        return message("ProbeResponse")(ready={"value": not any(s.damaged() for s in shelves)})
