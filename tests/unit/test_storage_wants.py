"""Volumes as pure functions: environments, fields, and what is told of facts that hold secrets."""

from __future__ import annotations

from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.errors import Invalid, Unavailable
from netplane.model.pods import Container, Pod, ResourceRequirements
from netplane.model.snapshot import Snapshot
from storageplane.pods import wants
from storageplane.volumes import RENDERERS, empty_dir, environment, fields
from storageplane.volumes.base import Context

WRONG = {"containerName": "main", "resource": "x"}
VALUES = {"A": "1", "B": "two words", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x-$(A)-$(B)", "x-1-two words"),
        ("$(A)$(A)", "11"),
        ("$(EMPTY)", ""),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$$$(A)", "$$(A)"),
        ("$(A", "$(A"),
        ("$A", "$A"),
        ("$", "$"),
        ("a$", "a$"),
        ("$()", "?"),
        ("$($(A))", "?)"),
        ("((A))", "((A))"),
        ("$ (A)", "$ (A)"),
    ],
)
def test_expansion_is_kubernetes_own(text: str, expanded: str) -> None:
    """third_party/forked/golang/expansion/expand_test.go, in kind."""
    assert environment.expand(text, lambda name: VALUES.get(name, "?")) == expanded


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'), ("plain é 漢", '"plain é 漢"'),
        ('a"b\\c', '"a\\"b\\\\c"'), ("\a\b\f\n\r\t\v", '"\\a\\b\\f\\n\\r\\t\\v"'),
        ("\x00\x7f", '"\\x00\\x7f"'), ("\u200b\U000e0001", '"\\u200b\\U000e0001"'),
    ],
)  # fmt: skip
def test_text_is_quoted_as_go_does(text: str, quoted: str) -> None:
    assert fields.quoted(text) == quoted


@pytest.mark.parametrize(
    ("name", "divisor", "value"),
    [
        ("limits.cpu", "0", "2"), ("limits.cpu", "1m", "1500"), ("limits.memory", "1", "1000000"),
        ("limits.memory", "1Mi", "1"), ("requests.cpu", "1m", "250"), ("requests.memory", "1k", "1000"),
        ("limits.ephemeral-storage", "1Gi", "8"), ("requests.ephemeral-storage", "1", "0"),
        ("limits.hugepages-2Mi", "1Mi", "4"),
    ],
)  # fmt: skip
def test_resources_are_in_units_of_the_divisor_rounded_up(name: str, divisor: str, value: str) -> None:
    limits: dict[str, Any] = {"cpu": "1500m", "memory": "1M", "hugepages-2Mi": "4Mi"}
    container = Container(name="c", resources=ResourceRequirements(limits=limits, requests={"cpu": "0.25"}))
    assert fields.resource(container, name, divisor, {"ephemeral-storage": "8Gi"}) == value


def pod(*volumes: dict[str, Any], **spec: Any) -> Pod:
    body = {"containers": [{"name": "main"}], "volumes": list(volumes), **spec}
    made = parse({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "uid": "u"}, "spec": body})
    assert isinstance(made, Pod)
    return made


def context(*objects: dict[str, Any]) -> Context:
    return Context("n1", "/root", Snapshot.of([parse(o) for o in objects]))


def secret(value: str) -> dict[str, Any]:
    meta = {"name": "s", "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"k": value}}


def test_a_digest_follows_a_secret_and_tells_nothing_of_it() -> None:
    volume = {"name": "v", "secret": {"secretName": "s"}}
    found = [wants.every(pod(volume), "", context(secret(v))) for v in ("hunter1", "hunter2", "hunter1")]
    one, two, three = (wants.digest(f.values()) for f in found)
    assert one == three != two
    assert "hunter" not in f"{found}{one}"


def test_every_field_of_the_pod_that_a_volume_may_show() -> None:
    for path in ("metadata.name", "metadata.labels", "metadata.annotations['a']", "metadata.uid"):
        pod({"name": "v", "downwardAPI": {"items": [{"path": "f", "fieldRef": {"fieldPath": path}}]}})
    for path in (
        "spec.nodeName",
        "status.podIP",
        "metadata.finalizers",
        "metadata.name['x']",
        "metadata.labels[x",
    ):
        with pytest.raises(Invalid, match="fieldPath"):
            pod({"name": "v", "downwardAPI": {"items": [{"path": "f", "fieldRef": {"fieldPath": path}}]}})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"configMap": {}}, "configMap.name: required"),
        ({"secret": {}}, "secret.secretName: required"),
        ({"configMap": {"name": "c", "defaultMode": 512}}, "0 to 0777"),
        ({"secret": {"secretName": "s", "items": [{"key": "k", "path": "p", "mode": -1}]}}, "0 to 0777"),
        ({"projected": {"sources": [{}]}}, "exactly one thing"),
        ({"projected": {"sources": [{"secret": {}}]}}, "name: required"),
        ({"downwardAPI": {"items": [{"path": "f"}]}}, "exactly one of fieldRef and resourceFieldRef"),
        (
            {"downwardAPI": {"items": [{"path": "f", "resourceFieldRef": {"resource": "limits.cpu"}}]}},
            "containerName: required",
        ),
        (
            {"downwardAPI": {"items": [{"path": "f", "resourceFieldRef": WRONG}]}},
            "'x' is not supported",
        ),
        ({"projected": {"sources": [], "default_mode": 1}}, "unknown field"),
    ],
)  # fmt: skip
def test_a_wrong_source_is_named_when_the_pod_is_read(source: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        pod({"name": "v", **source})


@pytest.mark.parametrize("name", ["..", "a/b", "nul\0", "x" * 129, "é", "", "A"])
def test_a_volume_has_a_dns_label_for_a_name(name: str) -> None:
    with pytest.raises(Invalid, match=r"volumes\[0\].name"):
        pod({"name": name, "emptyDir": {}})


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ({"volumeMounts": [{"name": "v", "mountPath": ""}]}, "mountPath"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/a\0"}]}, "mountPath"),
        ({"volumeMounts": [{"name": "w", "mountPath": "/a"}]}, "no volume named 'w'"),
        ({"volumeDevices": [{"name": "w", "devicePath": "/dev/a"}]}, "no volume named 'w'"),
        ({"volumeDevices": [{"name": "v", "devicePath": "/dev/a"}] * 2}, "duplicate"),
    ],
)
@pytest.mark.parametrize("section", ["initContainers", "containers", "ephemeralContainers"])
def test_a_mount_of_nothing_is_named_when_the_pod_is_read(
    section: str, container: dict[str, Any], said: str
) -> None:
    with pytest.raises(Invalid, match=said):
        pod({"name": "v", "emptyDir": {}}, **{section: [{"name": "one", **container}]})


def test_two_containers_of_one_name_are_refused_over_all_sections() -> None:
    with pytest.raises(Invalid, match=r"spec\.containers\[0\]\.name: duplicate 'one'"):
        pod(initContainers=[{"name": "one"}], containers=[{"name": "one"}])


def test_every_kind_of_volume_that_people_have_is_known_or_refused_by_name() -> None:
    assert len(RENDERERS) == 12
    for kind in ("image", "iscsi", "fc", "rbd"):
        with pytest.raises(Invalid, match=f"volume v: {kind} is not supported"):
            wants.every(pod({"name": "v", kind: {}}), "", context())


def test_the_environment_of_a_missing_config_map_is_waited_for() -> None:
    mount = {"name": "v", "mountPath": "/v", "subPathExpr": "$(A)"}
    spec = {
        "containers": [
            {"name": "main", "volumeMounts": [mount], "envFrom": [{"configMapRef": {"name": "c"}}]}
        ]
    }
    with pytest.raises(Unavailable, match="ConfigMap default/c does not exist"):
        wants.every(pod({"name": "v", "emptyDir": {}}, **spec), "", context())


def test_the_page_size_of_huge_pages_is_the_containers() -> None:
    limits = {"resources": {"limits": {"hugepages-1Gi": "1Gi"}}}
    made = pod({"name": "v", "emptyDir": {"medium": "HugePages"}}, containers=[{"name": "main", **limits}])
    assert empty_dir.page_of(made, made.spec.volumes[0]) == "1Gi"
