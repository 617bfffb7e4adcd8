"""A result's ``dns``: what the pod's resolv.conf says where this node answers the cluster's names, or what a
file says that the network names. Pure but for one look at that file, or at the node's own resolv.conf.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from ..model import resolvconf
from ..model.base import ObjectMeta
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.snapshot import Snapshot
from .errors import CONFIG, Refused
from .render import CniConfig


def pod_dns(attachment: Attachment, snapshot: Snapshot, config: CniConfig) -> dict[str, Any]:
    """CNI's dns of an attachment; {} where the node answers no names, so that the runtime decides."""
    if not config.dns_domain:
        return {}
    spec = attachment.spec
    pod = snapshot.get(Pod, spec.pod_namespace, spec.pod_name)
    if pod is None:  # a container that is nobody's pod yet
        pod = Pod(metadata=ObjectMeta(namespace=spec.pod_namespace or "default", name=spec.pod_name))
    servers = config.dns_servers or tuple(entry.gateway for entry in spec.ips if entry.gateway)
    return _named(resolvconf.resolv(pod, servers, config.dns_domain, _host(config.resolv_conf)))


def of_file(path: str) -> dict[str, Any]:
    """host-local's ``resolvConf``, read at each ADD; {} without. Raises Refused when it cannot be read."""
    if not path:
        return {}
    try:
        text = Path(path).read_text(errors="replace")
    except (OSError, ValueError) as exc:  # a ValueError: a NUL in the path
        reason = getattr(exc, "strerror", None) or exc
        raise Refused(CONFIG, f"ipam.resolvConf: {path!r:.200}: {reason}") from None
    domain = resolvconf.domain(text)
    return _named(resolvconf.parse(text)) | ({"domain": domain} if domain else {})


def _named(found: resolvconf.Resolv) -> dict[str, Any]:
    """In CNI's words."""
    named = {"nameservers": found.nameservers, "search": found.searches, "options": found.options}
    return {key: list(values) for key, values in named.items() if values}


def _host(path: str) -> resolvconf.Resolv:
    try:
        found = os.stat(path) if path else None
    except OSError:
        found = None
    return _read(path, found.st_ino, found.st_mtime_ns, found.st_size) if found else resolvconf.Resolv()


@functools.lru_cache(maxsize=4)
def _read(path: str, *_state: int) -> resolvconf.Resolv:
    """A file that is as it was is not read again."""
    try:
        return resolvconf.parse(Path(path).read_text(errors="replace"))
    except OSError:
        return resolvconf.Resolv()
