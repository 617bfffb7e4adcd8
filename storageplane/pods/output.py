"""What containers are told: mounts and devices, as JSON, for OCI runtimes, podman and ctr.

Source: OCI runtime specification 1.2, config.md ("Mounts") and config-linux.md ("Devices").
"""

from __future__ import annotations

import os
import stat
from typing import Any

from netplane.model.errors import Invalid, KernelError
from netplane.model.pods import Container, VolumeMount

from .publish import Publication
from .wants import PROPAGATIONS, all_containers

Shown = dict[str, Any]


def mounts_of(container: Container, publication: Publication) -> list[Shown]:
    """The container's mounts as the OCI runtime specification writes them."""
    return [_mount(container, i, mount, publication) for i, mount in enumerate(container.volume_mounts)]


def _mount(container: Container, index: int, mount: VolumeMount, publication: Publication) -> Shown:
    own = publication.views.get((container.name, index))
    read_only = mount.read_only or mount.name in publication.read_only
    share = {"None": "rprivate"}.get(mount.mount_propagation, PROPAGATIONS[mount.mount_propagation])
    return {
        "destination": mount.mount_path,
        "type": "bind",
        "source": own or publication.paths[mount.name],
        "options": ["rbind", "ro" if read_only else "rw", share],
    }


def devices_of(container: Container, publication: Publication) -> list[Shown]:
    """The container's block devices, as linux.devices; ``access`` is for linux.resources.devices."""
    return [_device(d.device_path, d.name, publication) for d in container.volume_devices]


def _device(path: str, name: str, publication: Publication) -> Shown:
    source = publication.paths[name]
    try:
        number = os.stat(source).st_rdev
    except OSError as exc:
        raise KernelError(exc.errno or 5, f"look at {source}") from exc
    return {
        "path": path,
        "type": "b",
        "major": os.major(number),
        "minor": os.minor(number),
        "fileMode": stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP,
        "uid": 0,
        "gid": 0,
        "source": source,
        "access": "r" if name in publication.read_only else "rwm",
    }


def as_json(publication: Publication) -> Shown:
    pod = publication.pod
    every = all_containers(pod)
    devices = {c.name: devices_of(c, publication) for c in every if c.volume_devices}
    return {
        "pod": pod.name,
        "namespace": pod.namespace,
        "uid": pod.metadata.uid,
        "target": publication.target,
        "volumes": publication.paths,
        "containers": {c.name: mounts_of(c, publication) for c in every},
        **({"devices": devices} if devices else {}),
    }


def as_oci(container: Container, publication: Publication) -> list[Shown]:
    """The mounts array alone. Raises Invalid for a container with devices, which it cannot show."""
    if container.volume_devices:
        raise Invalid(f"container {container.name} has volumeDevices, which are no mounts: use -o spec")
    return mounts_of(container, publication)


def as_spec(container: Container, publication: Publication) -> Shown:
    """The parts of a config.json that a container's volumes need."""
    devices = devices_of(container, publication)
    nodes = [{k: v for k, v in d.items() if k not in ("source", "access")} for d in devices]
    keys = ("type", "major", "minor", "access")
    allowed = [{"allow": True, **{k: d[k] for k in keys}} for d in devices]
    linux = {"linux": {"devices": nodes, "resources": {"devices": allowed}}} if devices else {}
    return {"mounts": mounts_of(container, publication), **linux}


def as_podman(container: Container, publication: Publication) -> list[str]:
    """Options of `podman run` and `docker run`, one to a line. Raises Invalid for what they cannot take."""
    lines = [
        f"--volume={_plain(m['source'], ':,')}:{_plain(m['destination'], ':,')}:{','.join(m['options'])}"
        for m in mounts_of(container, publication)
    ]
    devices = devices_of(container, publication)
    return lines + [
        f"--device={_plain(d['source'], ':')}:{_plain(d['path'], ':')}:{d['access']}" for d in devices
    ]


def as_ctr(container: Container, publication: Publication) -> list[str]:
    """Options of `ctr run`, one to a line. Raises Invalid for what it cannot take."""
    if container.volume_devices:
        raise Invalid(f"container {container.name}: ctr gives no device another path: use -o spec")
    return [
        f"--mount=type=bind,src={_plain(m['source'], ',')},dst={_plain(m['destination'], ',')}"
        f",options={':'.join(m['options'])}"
        for m in mounts_of(container, publication)
    ]


def _plain(path: str, without: str) -> str:
    bad = next((c for c in without + "\n" if c in path), "")
    if bad:
        raise Invalid(f"{path}: {bad!r} cannot stand in such an option: use -o spec")
    return path
