"""The strict parser: what is refused, in which words; and manifests that people have, kept whole."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from netplane.model import codec
from netplane.model.base import Key
from netplane.model.errors import Invalid

HEADS = {
    "Service": "apiVersion: v1\nkind: Service\nmetadata: {name: x}\n",
    "Pod": "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n",
    "Node": "apiVersion: v1\nkind: Node\nmetadata: {name: x}\n",
    "ConfigMap": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
    "Secret": "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n",
    "PV": "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: x}\n",
    "PVC": "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: x}\n",
    "Slice": "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\n",
    "Policy": "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x}\n",
    "Class": "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: x}\n",
}
PV = "capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce]"
POD = "containers: [{name: a, image: b}]"


def refusal(text: str | bytes) -> str:
    with pytest.raises(Invalid) as caught:
        codec.parse_all(text, "f.yaml")
    return str(caught.value)


# (kind, the rest of the manifest, field path, a word of the reason)
NOWHERE = ("127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.9", "'::1'", "'::'", "fe80::1", "ff02::1")
FIELDS = [
    ("Service", "spec: {port: 80}", "spec.port", "unknown field"),
    ("Service", "specs: {}", "specs", "unknown field"),
    ("Service", "spec: {ports: [{port: 80, targetport: 1}]}", "spec.ports[0].targetport", "unknown field"),
    ("Service", "spec: {ports: [{port: '80'}]}", "spec.ports[0].port", "expected `int`, got `str`"),
    ("Service", "spec: {ports: [{port: true}]}", "spec.ports[0].port", "expected `int`, got `bool`"),
    ("Service", "spec: {ports: [{port: 80.5}]}", "spec.ports[0].port", "expected `int`"),
    ("Service", "spec: {ports: [{port: 0}]}", "spec.ports[0].port", "0 is not a port: it must be 1 to 65535"),
    ("Service", "spec: {ports: [{port: 65536}]}", "spec.ports[0].port", "1 to 65535"),
    ("Service", "spec: {ports: [{port: -1}]}", "spec.ports[0].port", "1 to 65535"),
    ("Service", "spec: {ports: [{port: 80, protocol: tcp}]}", "spec.ports[0].protocol", "use one of 'TCP'"),
    ("Service", "spec: {ports: [{port: 80, targetPort: 8O}]}", "spec.ports[0].targetPort", "not a port name"),
    ("Service", "spec: {ports: [{port: 80, nodePort: 30000}]}", "spec.ports[0].nodePort", "ClusterIP"),
    ("Service", "spec: {ports: [{port: 80}, {port: 81}]}", "spec.ports[0].name", "more than one port"),
    (
        "Service", "spec: {ports: [{name: a, port: 80}, {name: a, port: 81}]}",
        "spec.ports[1].name", "duplicate 'a', first at index 0",
    ),
    ("Service", "spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}", "spec.ports[1]", "duplicate"),
    (
        "Service", "spec: {clusterIP: None, type: NodePort, ports: [{port: 80}]}",
        "spec.clusterIP", "not allowed when spec.type is NodePort",
    ),
    ("Service", "spec: {clusterIPs: [None], ports: [{port: 80}]}", "spec.clusterIP", "as well"),
    (
        "Service", "spec: {trafficDistribution: PreferLocal, ports: [{port: 80}]}",
        "spec.trafficDistribution", "use one of",
    ),
    *(
        (
            "Service", f"spec: {{externalIPs: [{ip}], ports: [{{port: 80}}]}}",
            "spec.externalIPs[0]", "loopback or link-local",
        )
        for ip in NOWHERE
    ),
    *(
        (
            "Slice", f"addressType: IPv{6 if ':' in ip else 4}\nendpoints: [{{addresses: [{ip}]}}]",
            "endpoints[0].addresses[0]", "loopback or link-local",
        )
        for ip in NOWHERE
    ),
    ("Service", "spec: {ports: {port: 80}}", "spec.ports", "expected `array`"),
    ("Service", "spec: {}", "spec.ports", "at least one port"),
    ("Service", "spec: {clusterIP: 10.0.0.300, ports: [{port: 1}]}", "spec.clusterIP", "not an IPv4 or IPv6"),
    ("Service", "spec: {clusterIP: 'fd00:0::1', ports: [{port: 1}]}", "spec.clusterIP", "use fd00::1"),
    ("Service", "spec: {type: Nodeport, ports: [{port: 1}]}", "spec.type", "'Nodeport' is not supported"),
    ("Service", "spec: {sessionAffinity: IP, ports: [{port: 1}]}", "spec.sessionAffinity", "ClientIP"),
    ("Node", "spec: {podCIDR: 10.0.0.1/24}", "spec.podCIDR", "has host bits set"),
    ("Node", "spec: {podCIDRs: [10.0.0.0/33]}", "spec.podCIDRs[0]", "not a CIDR"),
    ("Node", "spec: {podCIDRs: [10.0.0.0]}", "spec.podCIDRs[0]", "not a CIDR"),
    ("Node", "spec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.1.0/24]}", "spec.podCIDRs[0]", "must equal"),
    (
        "Node", "status: {addresses: [{type: InternalIP, address: n1}]}",
        "status.addresses[0].address", "not an IPv4 or IPv6 address",
    ),
    ("Pod", f"spec: {{{POD}, volumes: [{{name: v}}]}}", "spec.volumes[0]", "exactly one source"),
    (
        "Pod", f"spec: {{{POD}, volumes: [{{name: v, emptyDir: {{}}}}, {{name: v, emptyDir: {{}}}}]}}",
        "spec.volumes[1].name", "duplicate 'v'",
    ),
    (
        "Pod", "spec: {containers: [{name: a, volumeMounts: [{name: v, mountPath: /v}]}]}",
        "spec.containers[0].volumeMounts[0].name", "no volume named 'v'",
    ),
    (
        "Pod", f"spec: {{{POD}, volumes: [{{name: v, hostPath: {{path: ../x}}}}]}}",
        "spec.volumes[0].hostPath.path", "absolute path",
    ),
    (
        "Pod", f"spec: {{{POD}, volumes: [{{name: v, emptyDir: {{sizeLimit: 1Gb}}}}]}}",
        "spec.volumes[0].emptyDir.sizeLimit", "not a quantity",
    ),
    ("ConfigMap", "data: {a: 1}", "data[a]", "expected `str`, got `int`"),
    ("ConfigMap", "data: {../a: x}", "data[../a]", "a key is at most 253"),
    ("ConfigMap", "data: {a: x}\nbinaryData: {a: eA==}", "binaryData[a]", "stands in data too"),
    ("Secret", "data: {a: hello!}", "data[a]", "is not base64"),
    ("PV", f"spec: {{{PV}}}", "spec", "exactly one source; this one has none"),
    ("PV", "spec: {accessModes: [ReadWriteOnce], hostPath: {path: /x}}", "spec.capacity.storage", "required"),
    ("PV", f"spec: {{{PV}, local: {{path: /x}}}}", "spec.nodeAffinity", "required for a local volume"),
    ("PVC", "spec: {accessModes: [ReadWriteOnce]}", "spec.resources.requests.storage", "required"),
    (
        "PVC", "spec: {resources: {requests: {storage: 1Gi}}}",
        "spec.accessModes", "at least one access mode is required",
    ),
    ("Class", "reclaimPolicy: Delete", "", "missing required field `provisioner`"),
    ("Class", "provisioner: x\nreclaimPolicy: Keep", "reclaimPolicy", "'Retain', 'Delete'"),
    ("Slice", "endpoints: []", "", "missing required field `addressType`"),
    (
        "Slice", "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
        "endpoints[0].addresses[0]", "is not of addressType IPv4",
    ),
    (
        "Policy",
        "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]}",
        "spec.ingress[0].from[0].ipBlock.except[0]", "strictly inside",
    ),
    (
        "Policy", "spec: {podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "spec.podSelector.matchExpressions[0].values", "required when operator is In",
    ),
    (
        "Policy", "spec: {podSelector: {}, egress: [{ports: [{port: http, endPort: 80}]}]}",
        "spec.egress[0].ports[0].endPort", "needs a numeric port",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rest", "path", "reason"), FIELDS, ids=[f"{f[0]} {f[1]}" for f in FIELDS])
def test_a_wrong_field_is_refused_with_file_kind_name_path_and_reason(
    kind: str, rest: str, path: str, reason: str
) -> None:
    said = refusal(HEADS[kind] + rest)
    full = yaml.safe_load(HEADS[kind])["kind"]
    assert said.startswith(f"f.yaml: {full} ")
    assert f"{path}: " in said and reason in said
    assert "\n" not in said


META = [
    ("{}", "metadata.name: required"),
    ("null", "metadata.name: required"),
    ("{name: A_b}", "metadata.name: 'A_b' is not a DNS name"),
    ("{name: ../../etc}", "metadata.name: '../../etc' is not a DNS name"),
    ("{name: 7}", "metadata.name: expected `str`, got `int`"),
    ("{name: x, namespace: a.b}", "metadata.namespace: 'a.b' is not a DNS label"),
    ("{name: x, labels: {a: yes}}", "metadata.labels[a]: expected `str`, got `bool`"),
    ("{name: x, labels: {a: 1}}", "metadata.labels[a]: expected `str`, got `int`"),
    ("{name: x, labels: {-a: b}}", "metadata.labels[-a]: a label key"),
    ("{name: x, labels: {a: 'b c'}}", "metadata.labels[a]: 'b c'"),
    ("{name: x, annotations: {'a b': c}}", "metadata.annotations[a b]:"),
    ("{name: x, label: {}}", "metadata.label: unknown field"),
    ("{name: x, resourceVersion: abc}", "metadata.resourceVersion: 'abc' is not a revision"),
    ("{name: x, resourceVersion: '²'}", "metadata.resourceVersion: '²' is not a revision"),
]


@pytest.mark.parametrize(("metadata", "reason"), META, ids=[m[0] for m in META])
def test_wrong_metadata(metadata: str, reason: str) -> None:
    assert reason in refusal(f"apiVersion: v1\nkind: ConfigMap\nmetadata: {metadata}\n")


def test_a_cluster_scoped_kind_takes_no_namespace() -> None:
    text = "apiVersion: v1\nkind: Node\nmetadata: {name: x, namespace: y}"
    assert "metadata.namespace: not allowed: Node is cluster-scoped" in refusal(text)


TEXTS = [
    ("a: 1\n  b: 2", "line 2 not YAML"),
    ("\tx", "line 1 not YAML"),
    ("a: \x00", "not YAML"),
    (b"\xff\xff", "not YAML"),
    ("- a", "a manifest is a mapping"),
    ("text", "a manifest is a mapping"),
    ("{}", "kind None is not known"),
    ("apiVersion: v1\nkind: Deployment\nmetadata: {name: x}", "kind 'Deployment' is not known; use one of"),
    ("kind: [Service]", "is not known"),
    (
        "apiVersion: v2\nkind: Service\nmetadata: {name: x}",
        "Service x: apiVersion 'v2' is not known; use 'v1'",
    ),
    ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: the key 'c' stands twice in one mapping"),
    ('{"a": 1, "a": 2}', "line 1: the key 'a' stands twice"),
    ("? [a]\n: 1", "line 1: the key of a mapping is not text"),
    ("on: 1", "line 1: the key 'on' is not text: put it in quotes"),
    ("80: x", "line 1: the key '80' is not text"),
    ("a: .inf", "line 1: .inf is not a number that JSON has"),
    ("a: !!binary aGk=", "line 1: !!binary is not a type"),
    ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ("apiVersion: v1\nkind: List\nitems: {a: b}", "List: items: must be a list"),
    ("apiVersion: v1\nkind: List\nitems: [1]", "List: items: must be a list"),
    ("a: &a [*a]", "aliases unfold"),
    ("[" * 5000 + "]" * 5000, "f.yaml"),
    (
        "\n".join([f"a{i}: &a{i} [{','.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(12)]),
        "aliases unfold to more than",
    ),
]


@pytest.mark.parametrize(("text", "reason"), TEXTS, ids=[repr(t[0])[:30] for t in TEXTS])
def test_wrong_text(text: str | bytes, reason: str) -> None:
    said = refusal(text)
    assert said.startswith("f.yaml") and reason in said and "\n" not in said


def test_a_secrets_value_is_never_quoted() -> None:
    assert "hunter2" not in refusal(HEADS["Secret"] + "data: {a: hunter2!}")


def test_every_fault_is_named_at_once() -> None:
    said = refusal(HEADS["Service"] + "spec: {type: X, ports: [{port: 0}, {port: 70000}]}")
    for path in ("spec.type:", "spec.ports[0].port:", "spec.ports[1].port:", "spec.ports[0].name:"):
        assert path in said


def test_null_means_absent() -> None:
    (obj,) = codec.parse_all(
        HEADS["Service"] + "spec: {clusterIP: null, ports: [{port: 80, targetPort: null}]}\nstatus: null"
    )
    assert yaml.safe_load(codec.to_yaml(obj))["spec"] == {"ports": [{"port": 80}]}


def test_a_timestamp_stays_text() -> None:
    (obj,) = codec.parse_all(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, creationTimestamp: 2024-05-01T10:00:00Z}"
    )
    assert obj.metadata.creation_timestamp == "2024-05-01T10:00:00Z"


def test_several_documents_lists_and_typed_lists() -> None:
    text = (
        HEADS["ConfigMap"] + "---\n---\napiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: ConfigMap, metadata: {name: y, namespace: n}}\n"
        "---\napiVersion: v1\nkind: NodeList\nitems: [{metadata: {name: z}}]\n"
    )
    assert [o.key for o in codec.parse_all(text)] == [
        Key("ConfigMap", "default", "x"), Key("ConfigMap", "n", "y"), Key("Node", "", "z"),
    ]  # fmt: skip


def test_merge_keys_and_aliases_of_a_sane_size() -> None:
    text = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, labels: &l {a: b}, annotations: {<<: *l, c: d}}"
    )
    (obj,) = codec.parse_all(text)
    assert obj.metadata.annotations == {"a": "b", "c": "d"}


# --- manifests that people have ------------------------------------------------------------------

REAL: list[dict[str, Any]] = list(
    yaml.safe_load_all((Path(__file__).parent / "manifests" / "kubernetes.yaml").read_text())
)
DEFAULTS = {"protocol": "TCP"}  # what is said although it is the default is not printed


@pytest.mark.parametrize("doc", REAL, ids=lambda d: f"{d['kind']} {d['metadata']['name']}")
def test_a_real_manifest_comes_back_whole(doc: dict[str, Any]) -> None:
    obj = codec.parse(doc)
    lost = dict(_leaves(doc).items() - _leaves(yaml.safe_load(codec.to_yaml(obj))).items())
    assert {path: DEFAULTS.get(path.rpartition(".")[2], "?") for path in lost} == lost
    assert codec.decode(obj.KIND, codec.encode(obj)) == obj
    assert codec.parse_all(codec.to_yaml(obj)) == [obj]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """{"spec.ports.0.port": "80"}: everything that a document says, by path."""
    if not isinstance(value, dict | list) or not value:
        return {path: str(value)}
    below = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, item in below for k, v in _leaves(item, f"{path}.{name}").items()}


# --- property: what is encoded is what is decoded ------------------------------------------------

names = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
json = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(names, below, max_size=3),
    max_leaves=8,
)
metadata = st.fixed_dictionaries(
    {"name": names},
    optional={"labels": st.dictionaries(names, names, max_size=3), "finalizers": st.lists(names, max_size=2)},
)
manifests = st.one_of(
    st.fixed_dictionaries(
        {"apiVersion": st.just("v1"), "kind": st.just("ConfigMap"), "metadata": metadata},
        optional={"data": st.dictionaries(names, text, max_size=4)},
    ),
    st.fixed_dictionaries(
        {
            "apiVersion": st.just("v1"), "kind": st.just("Service"), "metadata": metadata,
            "spec": st.fixed_dictionaries(
                {
                    "ports": st.lists(
                        st.fixed_dictionaries(
                            {"name": names, "port": st.integers(1, 65535)},
                            optional={"targetPort": st.integers(1, 65535)},
                        ),
                        min_size=1, max_size=4, unique_by=(lambda p: p["name"], lambda p: p["port"]),
                    )
                },
                optional={"selector": st.dictionaries(names, names, max_size=2)},
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "apiVersion": st.just("v1"), "kind": st.just("Pod"), "metadata": metadata,
            "spec": st.fixed_dictionaries(
                {"containers": st.just([{"name": "a"}])}, optional={"affinity": json, "tolerations": json}
            ),
        }
    ),
)  # fmt: skip


@given(manifests)
def test_what_is_encoded_is_what_is_decoded(doc: dict[str, Any]) -> None:
    obj = codec.parse(doc)
    assert codec.decode(obj.KIND, codec.encode(obj)) == obj
    assert codec.parse_all(codec.to_yaml(obj)) == [obj]
    assert codec.parse(codec.to_dict(obj)) == obj


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_objects_or_invalid(text: str | bytes) -> None:
    with contextlib.suppress(Invalid):
        codec.parse_all(text)
