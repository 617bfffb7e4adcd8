"""Pod (v1): the fields that a network and storage node acts on, typed; the rest of the API, kept.

A field that only a kubelet acts on is named here with type Any, so that a manifest that people
already have is accepted and comes back whole, while a field that Kubernetes does not know is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from . import checks, volume_checks
from .base import Fault, Object, Struct
from .nodes import Condition
from .volumes import Volume


class ContainerPort(Struct, frozen=True, kw_only=True):
    container_port: int
    name: str = ""
    protocol: str = "TCP"
    host_port: int = 0
    host_ip: str = field(default="", name="hostIP")


class VolumeMount(Struct, frozen=True, kw_only=True):
    name: str
    mount_path: str
    sub_path: str = ""
    sub_path_expr: str = ""
    read_only: bool = False
    recursive_read_only: str = ""  # Disabled, IfPossible, Enabled
    mount_propagation: str = "None"  # None, HostToContainer, Bidirectional


class VolumeDevice(Struct, frozen=True, kw_only=True):
    name: str
    device_path: str


class ResourceRequirements(Struct, frozen=True, kw_only=True):
    limits: dict[str, str | int | float] = {}
    requests: dict[str, str | int | float] = {}
    claims: Any = None


class Container(Struct, frozen=True, kw_only=True):
    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    ports: tuple[ContainerPort, ...] = ()
    env: Any = None
    env_from: Any = None
    resources: ResourceRequirements = field(default_factory=ResourceRequirements)
    volume_mounts: tuple[VolumeMount, ...] = ()
    volume_devices: tuple[VolumeDevice, ...] = ()
    restart_policy: str = ""  # Always on an init container: a sidecar
    resize_policy: Any = None
    restart_policy_rules: Any = None
    liveness_probe: Any = None
    readiness_probe: Any = None
    startup_probe: Any = None
    lifecycle: Any = None
    termination_message_path: str = ""
    termination_message_policy: str = ""
    image_pull_policy: str = ""
    security_context: Any = None
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    target_container_name: str = ""


class PodSecurityContext(Struct, frozen=True, kw_only=True):
    fs_group: int | None = None
    fs_group_change_policy: str = ""
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: str = ""
    sysctls: Any = None
    se_linux_options: Any = None
    se_linux_change_policy: str = field(default="", name="seLinuxChangePolicy")
    seccomp_profile: Any = None
    app_armor_profile: Any = None
    windows_options: Any = None


class DNSOption(Struct, frozen=True, kw_only=True):
    name: str
    value: str | None = None


class PodDNSConfig(Struct, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[DNSOption, ...] = ()


class PodSpec(Struct, frozen=True, kw_only=True):
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    ephemeral_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    node_name: str = ""
    node_selector: dict[str, str] = {}
    hostname: str = ""
    subdomain: str = ""
    host_network: bool = False
    dns_policy: str = ""
    dns_config: PodDNSConfig | None = None
    security_context: PodSecurityContext | None = None
    restart_policy: str = ""
    termination_grace_period_seconds: int | None = None
    readiness_gates: Any = None
    active_deadline_seconds: int | None = None
    affinity: Any = None
    automount_service_account_token: bool | None = None
    enable_service_links: bool | None = None
    host_aliases: Any = None
    host_ipc: bool = field(default=False, name="hostIPC")
    host_pid: bool = field(default=False, name="hostPID")
    host_users: bool | None = None
    hostname_override: str = ""
    image_pull_secrets: Any = None
    os: Any = None
    overhead: Any = None
    preemption_policy: str = ""
    priority: int | None = None
    priority_class_name: str = ""
    resource_claims: Any = None
    resources: Any = None
    runtime_class_name: str = ""
    scheduler_name: str = ""
    scheduling_gates: Any = None
    service_account: str = ""
    service_account_name: str = ""
    set_hostname_as_fqdn: bool | None = field(default=None, name="setHostnameAsFQDN")
    share_process_namespace: bool | None = None
    tolerations: Any = None
    topology_spread_constraints: Any = None


class PodIP(Struct, frozen=True, kw_only=True):
    ip: str


class PodStatus(Struct, frozen=True, kw_only=True):
    phase: str = ""
    conditions: tuple[Condition, ...] = ()
    host_ip: str = field(default="", name="hostIP")
    host_ips: tuple[PodIP, ...] = field(default=(), name="hostIPs")
    pod_ip: str = field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = field(default=(), name="podIPs")
    start_time: str = ""
    message: str = ""
    reason: str = ""
    nominated_node_name: str = ""
    container_statuses: Any = None
    init_container_statuses: Any = None
    ephemeral_container_statuses: Any = None
    resource_claim_statuses: Any = None
    extended_resource_claim_status: Any = None
    observed_generation: int | None = None
    qos_class: str = field(default="", name="qosClass")
    resize: str = ""


class Pod(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Pod"

    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)

    @property
    def ips(self) -> tuple[str, ...]:
        if self.status.pod_ips:
            return tuple(p.ip for p in self.status.pod_ips)
        return (self.status.pod_ip,) if self.status.pod_ip else ()

    @property
    def ready(self) -> bool:
        """The Ready condition; a pod without one (no kubelet) is ready once it runs."""
        for condition in self.status.conditions:
            if condition.type == "Ready":
                return condition.status == "True"
        return self.status.phase in ("", "Running") and bool(self.ips)

    @property
    def finished(self) -> bool:
        return self.status.phase in ("Succeeded", "Failed")

    def check(self) -> Iterator[Fault]:
        spec = self.spec
        yield from checks.dns_subdomain("metadata.name", self.name)
        yield from checks.label_map("metadata.labels", self.labels)
        volumes = {v.name for v in spec.volumes}
        yield from checks.unique("spec.volumes[{}].name", (v.name for v in spec.volumes))
        for i, volume in enumerate(spec.volumes):
            yield from volume.check(f"spec.volumes[{i}]")
        if spec.hostname:
            yield from checks.dns_label("spec.hostname", spec.hostname)
        if spec.subdomain:
            yield from checks.dns_label("spec.subdomain", spec.subdomain)
        sections = {
            "spec.initContainers": spec.init_containers,
            "spec.containers": spec.containers,
            "spec.ephemeralContainers": spec.ephemeral_containers,
        }
        names: set[str] = set()
        for label, containers in sections.items():
            for i, container in enumerate(containers):
                if container.name in names:
                    yield f"{label}[{i}].name", f"duplicate {container.name!r}: all containers count"
                names.add(container.name)
                yield from _check_container(f"{label}[{i}]", container, volumes)
        for i, entry in enumerate(self.status.pod_ips):
            yield from checks.ip(f"status.podIPs[{i}].ip", entry.ip)


def _check_container(path: str, container: Container, volumes: set[str]) -> Iterator[Fault]:
    yield from checks.dns_label(f"{path}.name", container.name)
    for i, port in enumerate(container.ports):
        where = f"{path}.ports[{i}]"
        yield from checks.port(f"{where}.containerPort", port.container_port)
        yield from checks.one_of(f"{where}.protocol", port.protocol, checks.PROTOCOLS)
        if port.name:
            yield from checks.port_name(f"{where}.name", port.name)
        if port.host_port:
            yield from checks.port(f"{where}.hostPort", port.host_port)
    names = [p.name or i for i, p in enumerate(container.ports)]
    yield from checks.unique(f"{path}.ports[{{}}].name", names)
    paths = (m.mount_path for m in container.volume_mounts)
    yield from checks.unique(f"{path}.volumeMounts[{{}}].mountPath", paths)
    for i, mount in enumerate(container.volume_mounts):
        yield from _check_mount(f"{path}.volumeMounts[{i}]", mount, volumes)
    yield from checks.unique(
        f"{path}.volumeDevices[{{}}].devicePath", (d.device_path for d in container.volume_devices)
    )
    for i, device in enumerate(container.volume_devices):
        if device.name not in volumes:
            yield f"{path}.volumeDevices[{i}].name", f"no volume named {device.name!r} in spec.volumes"


def _check_mount(path: str, mount: VolumeMount, volumes: set[str]) -> Iterator[Fault]:
    if mount.name not in volumes:
        yield f"{path}.name", f"no volume named {mount.name!r} in spec.volumes"
    if not mount.mount_path or "\0" in mount.mount_path:
        yield f"{path}.mountPath", "required, and without NUL"
    if ".." in mount.sub_path.split("/") or mount.sub_path.startswith("/") or "\0" in mount.sub_path:
        yield f"{path}.subPath", "must be a relative path without '..'"
    if mount.sub_path and mount.sub_path_expr:
        yield f"{path}.subPathExpr", "cannot be set beside subPath"
    yield from volume_checks.recursive_read_only(f"{path}.recursiveReadOnly", mount)
    allowed = ("None", "HostToContainer", "Bidirectional")
    yield from checks.one_of(f"{path}.mountPropagation", mount.mount_propagation, allowed)
