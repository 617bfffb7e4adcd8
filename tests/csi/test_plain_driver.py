"""A driver that is written differently (`plain_driver`): the whole life of its volumes through our client.

claim ── agent ── ROOT/plugins/plain.example/csi.sock ── plain_driver ── HOME/data
pod ── publish ── ControllerPublish, NodePublish (no staging) ── ROOT/pods/UID/…/mount ── TARGET/data
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import Key, amend
from netplane.model.codec import parse
from netplane.model.errors import NetplaneError
from netplane.model.snapshot import Snapshot
from netplane.store import open_store
from storageplane import agent
from storageplane.host.mounts import Mounts
from storageplane.pods import publish, session
from tests.sequences.storage_world import pod, pvc, storage_class

from .conftest import MIB, mounts, tidy, until_there
from .foreign import until
from .plain_driver import NAME, NODE, PASSWORD

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "key", "namespace": "default"},
    "stringData": {"password": PASSWORD},
}
CALLS = ("provisioner", "controller-publish", "node-publish", "controller-expand", "node-expand")
REFS = {
    f"csi.storage.k8s.io/{call}-secret-{part}": value
    for call in CALLS
    for part, value in (("name", "key"), ("namespace", "default"))
}


class Running:
    """The driver as a process; ``root`` is ours, with its socket in it."""

    def __init__(self, base: Path) -> None:
        self.home, self.root = base / "plain", base / "ours"
        self.home.mkdir()
        self.socket = self.root / "plugins" / NAME / "csi.sock"
        self.socket.parent.mkdir(parents=True)
        argv = [sys.executable, "-m", "tests.csi.plain_driver", str(self.socket), str(self.home)]
        self._process = subprocess.Popen(argv)
        until_there(self.socket)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def calls(self) -> list[dict[str, Any]]:
        """All but the questions who it is and what it can."""
        made = [json.loads(line) for line in (self.home / "calls").read_text().splitlines()]
        return [c for c in made if "Get" not in c["method"]]

    def asked(self) -> list[str]:
        return [c["method"] for c in self.calls()]

    def last(self, method: str) -> dict[str, Any]:
        return next(c for c in reversed(self.calls()) if c["method"] == method)

    def data(self) -> list[Path]:
        return list((self.home / "data").iterdir())


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Running]:
    driver = Running(tmp_path)
    yield driver
    driver.end()
    tidy(tmp_path)


def test_a_volume_without_staging_and_with_secrets_lives_its_whole_life(
    plain: Running, tmp_path: Path
) -> None:
    root, target = plain.root, tmp_path / "pod"
    store = open_store(f"sqlite://{tmp_path}/s.db")
    parameters = {"pool": "gold", **REFS}
    cls = storage_class("fast", NAME, parameters=parameters, allowVolumeExpansion=True)
    for obj in (SECRET, cls, pvc("c", "5Mi", storageClassName="fast"), pod()):
        store.put(parse(obj))
    core = agent.build(open_store(f"sqlite://{tmp_path}/s.db"), agent.Config("n1", root, csi_drivers=(NAME,)))
    core.start()
    try:
        found, snapshot = session.ready(store, Key("Pod", "default", "p"), "n1", str(root), ())
        done = publish.publish(found, snapshot, "n1", Mounts(root), str(target))
        (Path(done.paths["data"]) / "word").write_text("kept")
        assert [(p / "word").read_text() for p in plain.data()] == ["kept"]
        assert plain.asked() == ["CreateVolume", "ControllerPublishVolume", "NodePublishVolume"]
        _check_calls(plain)

        claim: Any = store.get(Key("PersistentVolumeClaim", "default", "c"))
        volume: Any = store.get(Key("PersistentVolume", "", f"pvc-{claim.metadata.uid}"))
        assert volume.spec.capacity == {"storage": str(8 * MIB)}, "the driver rounds up"
        assert volume.spec.node_affinity is None and volume.spec.csi.volume_attributes["share"] == "17"
        more = amend(claim.spec, resources=amend(claim.spec.resources, requests={"storage": "9Mi"}))
        store.put(amend(claim, spec=more), expect=claim.revision)
        until(lambda: store.get(volume.key).spec.capacity == {"storage": str(12 * MIB)}, "it never grew")
        assert plain.asked()[3:] == ["ControllerExpandVolume", "NodeExpandVolume"]
        found, snapshot = session.ready(store, Key("Pod", "default", "p"), "n1", str(root), ())
        publish.publish(found, snapshot, "n1", Mounts(root), str(target))
        assert plain.asked()[5:] == ["ControllerPublishVolume", "NodePublishVolume", "NodeExpandVolume"]

        store.delete(Key("Pod", "default", "p"))
        store.delete(claim.key)
        assert publish.unpublish("default", "p", Mounts(root), str(target)) == 1
        assert plain.asked()[8:10] == ["NodeUnpublishVolume", "ControllerUnpublishVolume"]
        assert plain.last("ControllerUnpublishVolume")["node_id"] == NODE
        until(lambda: store.get(volume.key) is None, "the volume object stays")
        assert plain.asked()[10:] == ["DeleteVolume"] and plain.data() == []
        assert mounts(tmp_path) == [] and not list((root / "pods").iterdir())
        assert not list((root / "csi-client" / "attached").iterdir())
    finally:
        core.stop()
        store.close()


def _check_calls(plain: Running) -> None:
    """What it answered comes back to it, and nothing that it cannot take."""
    shown = plain.last("NodePublishVolume")
    assert shown["publish_context"] == {"lun": "3"}
    assert shown["volume_context"] == {"pool": "gold", "share": "17"}
    assert shown["volume_capability"]["access_mode"] == {"mode": "SINGLE_NODE_WRITER"}
    created = plain.last("CreateVolume")
    assert created["parameters"] == {"pool": "gold"} and "accessibility_requirements" not in created
    assert plain.last("ControllerPublishVolume")["volume_context"]["pool"] == "gold"


# --- volumes of a pod itself ------------------------------------------------------------------------


def inline(**attributes: str) -> Any:
    """A pod with a volume of its own at the driver; the node's password comes from a Secret."""
    source = {"driver": NAME, "volumeAttributes": attributes, "nodePublishSecretRef": {"name": "key"}}
    made = pod(uid="u1")
    made["spec"]["volumes"] = [{"name": "v", "csi": source}]
    return parse(made)


def test_a_pods_own_volume_comes_with_its_publication_and_goes_with_it(
    plain: Running, tmp_path: Path
) -> None:
    root, target, driver = plain.root, tmp_path / "pod", Mounts(plain.root)
    one, objects = inline(size="1m"), Snapshot.of([parse(SECRET)])
    publish.publish(one, objects, "n1", driver, str(target))
    (target / "v" / "word").write_text("x")
    assert (target / "v").stat().st_dev != tmp_path.stat().st_dev
    with pytest.raises(OSError, match="No space left"):
        (target / "v" / "big").write_bytes(b"x" * (2 << 20))
    assert plain.asked() == ["NodePublishVolume"], "nothing but this is asked for such a volume"
    told = plain.last("NodePublishVolume")
    assert told["volume_context"] == {
        "size": "1m",
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": "p",
        "csi.storage.k8s.io/pod.namespace": "default",
        "csi.storage.k8s.io/pod.uid": "u1",
        "csi.storage.k8s.io/serviceAccount.name": "default",
    }
    assert told["volume_id"].startswith("csi-") and "publish_context" not in told
    publish.publish(one, objects, "n1", driver, str(target))
    assert (target / "v" / "word").read_text() == "x", "publishing again is a repair, not a new volume"
    assert publish.unpublish("default", "p", driver, str(target)) == 1
    assert plain.asked()[-1] == "NodeUnpublishVolume"
    assert "ControllerUnpublishVolume" not in plain.asked() and "DeleteVolume" not in plain.asked()
    assert mounts(tmp_path) == [] and not list((root / "pods").iterdir())
    assert not list((root / "csi-client" / "attached").iterdir()) and not target.exists()
    assert PASSWORD not in "".join(p.read_text() for p in root.rglob("*.json"))


def test_a_pods_own_volume_that_is_refused_says_why_and_leaves_nothing(
    plain: Running, tmp_path: Path
) -> None:
    root = plain.root
    with pytest.raises(NetplaneError, match=r"plain.example: NodePublishVolume: volumeAttributes.size"):
        publish.publish(inline(), Snapshot.of([parse(SECRET)]), "n1", Mounts(root), str(tmp_path / "pod"))
    assert mounts(tmp_path) == [] and not list((root / "pods").iterdir())
    assert not list((root / "csi-client" / "attached").iterdir())
