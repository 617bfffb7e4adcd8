"""apply, get, describe and delete as a user types them, over a store of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from netplane.commands import objects, printing
from netplane.model import codec
from netplane.model.base import Key, Object, amend
from netplane.store import open_store

from ..programs import program

Run = Callable[..., Result]


@click.group()
def netplane() -> None:
    pass


objects.register(netplane)

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}, annotations: {netplane.io/endpoint-mode: dnsrr}}
spec:
  selector: {app: web}
  type: NodePort
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: metrics, port: 9090}
"""
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData: {password: hunter2!}
"""
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/state.db"


@pytest.fixture
def run(url: str) -> Run:
    def call(*args: str, stdin: str | None = None, status: int = 0) -> Result:
        result = CliRunner().invoke(netplane, [*args, "--store", url], input=stdin)
        assert result.exit_code == status, result.output
        return result

    return call


@pytest.fixture
def change(url: str) -> Callable[..., Object]:
    """Writes as a controller would: a spec or status field of a stored object."""

    def put(kind: str, name: str, part: str, **fields: Any) -> Object:
        store = open_store(url)
        old: Any = store.get(Key(kind, "default" if codec.KINDS[kind].NAMESPACED else "", name))
        new = store.put(amend(old, **{part: amend(getattr(old, part), **fields)}))
        store.close()
        return new

    return put


def allocated(change: Callable[..., Object]) -> None:
    """What the allocator does to WEB."""
    ports = codec.parse(yaml.safe_load(WEB)).spec.ports  # type: ignore[attr-defined]
    ports = tuple(amend(p, node_port=30000 + i) for i, p in enumerate(ports))
    change("Service", "web", "spec", cluster_ip="10.96.0.7", cluster_ips=("10.96.0.7",), ports=ports)


def test_apply_says_created_unchanged_configured(run: Run) -> None:
    assert run("apply", "-f", "-", stdin=WEB).stdout == "service/web created\n"
    assert run("apply", "-f", "-", stdin=WEB).stdout == "service/web unchanged\n"
    changed = WEB.replace("8080", "8081")
    assert run("apply", "-f", "-", stdin=changed).stdout == "service/web configured\n"


def test_apply_writes_nothing_when_one_document_is_wrong(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(WEB)
    (tmp_path / "b.yaml").write_text(CLAIM.replace("ReadWriteOnce", "Sometimes"))
    failed = run("apply", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"), status=1)
    line = failed.stderr
    assert "b.yaml: PersistentVolumeClaim default/data: spec.accessModes[0]: 'Sometimes'" in line
    assert line.count("\n") == 1 and failed.stdout == ""
    assert run("get", "svc").stdout == ""


def test_apply_takes_directories_and_refuses_the_same_object_twice(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "m"
    home.mkdir()
    (home / "1.yaml").write_text(WEB + "---" + SECRET)
    (home / "2.json").write_text(json.dumps(yaml.safe_load(CLAIM)))
    (home / "README.md").write_text("not a manifest")
    printed = run("apply", "-f", str(home)).stdout.splitlines()
    assert printed == ["service/web created", "secret/db created", "persistentvolumeclaim/data created"]
    (home / "3.yaml").write_text(WEB)
    assert f"{home}/3.yaml: Service default/web stands in {home}/1.yaml already" in run(
        "apply", "-f", str(home), status=1
    ).stderr.replace("\n", "")


def test_apply_keeps_what_controllers_allocated(run: Run, change: Any) -> None:
    run("apply", "-f", "-", stdin=WEB)
    allocated(change)
    before = json.loads(run("get", "svc", "web", "-o", "json").stdout)
    assert run("apply", "-f", "-", stdin=WEB).stdout == "service/web unchanged\n"
    run("apply", "-f", "-", stdin=WEB.replace("8080", "8081"))
    after = json.loads(run("get", "svc", "web", "-o", "json").stdout)
    assert after["spec"]["clusterIP"] == "10.96.0.7"
    assert [p.get("nodePort") for p in after["spec"]["ports"]] == [30000, 30001]
    assert after["spec"]["ports"][0]["targetPort"] == 8081
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_apply_keeps_status_finalizers_and_other_hands_annotations(run: Run, url: str) -> None:
    run("apply", "-f", "-", stdin=CLAIM)
    store = open_store(url)
    claim: Any = store.get(Key("PersistentVolumeClaim", "default", "data"))
    claim = amend(
        claim,
        metadata=amend(
            claim.metadata, finalizers=("kubernetes.io/pvc-protection",), annotations={"by": "us"}
        ),
        spec=amend(claim.spec, volume_name="pv1", storage_class_name=""),
        status=amend(claim.status, phase="Bound"),
    )
    store.put(claim)
    store.close()
    assert "configured" in run("apply", "-f", "-", stdin=CLAIM.replace("1Gi", "2Gi")).stdout
    doc = yaml.safe_load(run("get", "pvc", "data", "-o", "yaml").stdout)
    assert doc["status"] == {"phase": "Bound"} and doc["spec"]["volumeName"] == "pv1"
    assert doc["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    assert doc["metadata"]["annotations"] == {"by": "us"}
    assert doc["spec"]["resources"]["requests"]["storage"] == "2Gi"


def test_apply_drops_what_an_earlier_manifest_said_and_this_one_does_not(run: Run) -> None:
    run("apply", "-f", "-", stdin=WEB)
    lean = WEB.replace(", annotations: {netplane.io/endpoint-mode: dnsrr}", "").replace(
        "app: web}", "tier: x}", 1
    )
    run("apply", "-f", "-", stdin=lean)
    metadata = json.loads(run("get", "svc", "web", "-o", "json").stdout)["metadata"]
    assert "annotations" not in metadata and metadata["labels"] == {"tier": "x"}


def test_a_service_that_is_no_longer_a_nodeport_gives_its_node_ports_up(run: Run, change: Any) -> None:
    run("apply", "-f", "-", stdin=WEB)
    allocated(change)
    run("apply", "-f", "-", stdin=WEB.replace("  type: NodePort\n", ""))
    spec = json.loads(run("get", "svc", "web", "-o", "json").stdout)["spec"]
    assert "type" not in spec and not any("nodePort" in p for p in spec["ports"])


def test_apply_refuses_to_change_what_is_chosen_once(run: Run, change: Any) -> None:
    run("apply", "-f", "-", stdin=WEB)
    allocated(change)
    other = WEB.replace("  type: NodePort", "  type: NodePort\n  clusterIP: 10.96.0.9")
    assert run("apply", "-f", "-", stdin=other, status=1).stderr == (
        "Error: Service default/web: spec.clusterIP: '10.96.0.7' is set and cannot change to '10.96.0.9'; "
        "leave spec.clusterIP out, or delete the Service first\n"
    )


def test_a_secrets_string_data_becomes_data(run: Run) -> None:
    run("apply", "-f", "-", stdin=SECRET)
    doc = json.loads(run("get", "secret", "db", "-o", "json").stdout)
    assert doc["data"] == {"password": "aHVudGVyMiE="} and "stringData" not in doc


def test_a_namespace_that_contradicts_n_is_refused(run: Run) -> None:
    there = WEB.replace("name: web,", "name: web, namespace: prod,", 1)
    assert "'prod' is not the namespace 'test' of -n" in run(
        "apply", "-n", "test", "-f", "-", stdin=there, status=1
    ).stderr.replace("\n", " ")
    run("apply", "-n", "prod", "-f", "-", stdin=WEB)
    assert run("get", "svc", "-n", "prod", "-o", "name").stdout == "service/web\n"


def test_get_prints_kubectls_table(run: Run, change: Any) -> None:
    run("apply", "-f", "-", stdin=WEB)
    allocated(change)
    head, row = run("get", "services").stdout.splitlines()
    assert head.split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    assert row.split()[:5] == ["web", "NodePort", "10.96.0.7", "<none>", "80:30000/TCP,9090:30001/TCP"]
    assert row.split()[5].endswith("s")
    wide, _ = run("get", "svc", "-A", "-o", "wide").stdout.splitlines()
    assert wide.split()[0] == "NAMESPACE" and wide.split()[-1] == "SELECTOR"


@pytest.mark.parametrize("word", ["svc", "service", "Services", "services.v1", "svc,cm", "all"])
def test_kinds_by_every_name(run: Run, word: str) -> None:
    run("apply", "-f", "-", stdin=WEB)
    assert run("get", word, "-o", "name").stdout == "service/web\n"


def test_several_kinds_are_told_apart(run: Run) -> None:
    run("apply", "-f", "-", stdin=WEB + "---" + CLAIM)
    text = run("get", "pvc,svc").stdout
    assert text.index("persistentvolumeclaim/data") < text.index("\n\n") < text.index("service/web")
    assert run("get", "svc/web", "pvc/data", "-o", "name").stdout.split() == [
        "service/web", "persistentvolumeclaim/data",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=web", "ab"), ("app==web,tier!=db", "a"), ("tier", "b"), ("!tier", "ac"),
        ("app in (web, other)", "abc"), ("app notin (web)", "c"), ("app=web,tier in (db)", "b"),
    ],
)  # fmt: skip
def test_get_by_selector(run: Run, selector: str, found: str) -> None:
    labels: dict[str, dict[str, str]] = {
        "a": {"app": "web"},
        "b": {"app": "web", "tier": "db"},
        "c": {"app": "other"},
    }
    docs = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": n, "labels": v}}
        for n, v in labels.items()
    ]
    run("apply", "-f", "-", stdin=yaml.safe_dump_all(docs))
    printed = run("get", "cm", "-l", selector, "-o", "name").stdout
    assert printed == "".join(f"configmap/{n}\n" for n in found)


def test_what_get_prints_can_be_applied_again(run: Run, change: Any) -> None:
    run("apply", "-f", "-", stdin=WEB + "---" + CLAIM)
    allocated(change)
    printed = run("get", "svc,pvc", "-o", "yaml").stdout
    assert "managedFields" not in printed
    assert run("apply", "-f", "-", stdin=printed).exit_code == 0
    run("delete", "-f", "-", stdin=printed)
    run("apply", "-f", "-", stdin=printed)
    assert json.loads(run("get", "svc", "web", "-o", "json").stdout)["spec"]["clusterIP"] == "10.96.0.7"


def test_nothing_there_is_said_on_stderr(run: Run) -> None:
    assert run("get", "pods").stderr == "No resources found in default namespace\n"
    assert run("get", "nodes").stderr == "No resources found\n"
    assert run("get", "pod", "x", status=1).stderr == "Error: Pod default/x: not found\n"


@pytest.mark.parametrize(
    ("args", "status", "word"),
    [
        (["get", "gizmos"], 1, "there is no kind 'gizmos'"),
        (["get"], 2, "Missing argument"),
        (["apply"], 2, "apply needs -f FILE"),
        (["delete"], 2, "delete needs"),
        (["delete", "svc"], 2, "delete needs a name"),
        (["get", "svc", "-o", "xml"], 2, "xml"),
        (["get", "svc", "-A", "-n", "x"], 2, "exclude each other"),
        (["get", "svc", "-l", "a=b=c=d!"], 1, "selector"),
        (["apply", "-f", "/nowhere.yaml"], 1, "/nowhere.yaml: No such file or directory"),
    ],
)
def test_wrong_words(run: Run, args: list[str], status: int, word: str) -> None:
    assert word in run(*args, status=status).stderr


def test_an_unknown_store_is_one_line() -> None:
    result = CliRunner().invoke(netplane, ["get", "svc", "--store", "mysql://x"])
    assert result.exit_code == 1 and result.stderr.startswith("Error: store 'mysql://x'")


def test_the_store_comes_from_the_environment(run: Run, url: str) -> None:
    run("apply", "-f", "-", stdin=WEB)
    result = CliRunner().invoke(netplane, ["get", "svc", "-o", "name"], env={"NETPLANE_STORE": url})
    assert result.stdout == "service/web\n"


def test_delete_by_name_and_by_file(run: Run) -> None:
    run("apply", "-f", "-", stdin=WEB + "---" + CLAIM)
    assert run("delete", "svc", "web").stdout == 'service "web" deleted\n'
    gone = run("delete", "-f", "-", stdin=WEB + "---" + CLAIM, status=1)
    assert gone.stdout == 'persistentvolumeclaim "data" deleted\n'
    assert gone.stderr == "Error: Service default/web: not found\n"
    assert run("delete", "svc/web", "--ignore-not-found").stdout == ""


def test_delete_says_what_holds_an_object(run: Run) -> None:
    run("apply", "-f", "-", stdin=CLAIM.replace("name: data", "name: data, finalizers: [x/y]"))
    assert run("delete", "pvc", "data").stdout == (
        'persistentvolumeclaim "data" marked for deletion, held by x/y\n'
    )
    assert "Terminating" in run("get", "pvc").stdout


def test_describe_shows_sizes_of_secrets_never_their_data(run: Run) -> None:
    run("apply", "-f", "-", stdin=SECRET)
    text = run("describe", "secret", "db").stdout
    assert "password:  8 bytes" in text
    assert "hunter2" not in text and "aHVudGVyMiE" not in text
    assert "hunter2" not in run("get", "secrets", "-o", "wide").stdout


def test_describe_shows_endpoints_and_events(run: Run) -> None:
    run("apply", "-f", "-", stdin=WEB)
    docs: list[Any] = [
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [
                {"addresses": ["10.244.0.5"], "conditions": {"ready": True}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": False}},
            ],
            "ports": [{"name": "http", "port": 8080}],
        },
        {
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1"}, "type": "Warning",
            "involvedObject": {"kind": "Service", "namespace": "default", "name": "web"},
            "reason": "Refused", "message": "node port 80 is outside the range",
        },
    ]  # fmt: skip
    run("apply", "-f", "-", stdin=yaml.safe_dump_all(docs))
    text = run("describe", "svc", "web").stdout
    assert "Endpoints:       10.244.0.5:8080\n" in text and "10.244.0.6" not in text
    assert "Refused" in text and "outside the range" in text


def test_get_watch_prints_what_happens(url: str, run: Run) -> None:
    code = (
        "import click, sys\nfrom netplane.commands import objects\n"
        "g = click.Group()\nobjects.register(g)\ng.main(sys.argv[1:])"
    )
    argv = [sys.executable, "-u", "-c", code, "get", "svc", "-w", "-o", "name", "--store", url]
    run("apply", "-f", "-", stdin=WEB)
    with program(*argv) as watching:
        assert watching.stdout
        assert watching.stdout.readline() == "service/web\n"
        run("apply", "-f", "-", stdin=CLAIM + "---" + WEB.replace("name: web,", "name: two,", 1))
        assert watching.stdout.readline() == "service/two\n"
        watching.send_signal(2)
        assert watching.wait(10) == -2


NOW = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "5s"), (119, "119s"), (120, "2m"), (200, "3m20s"), (2400, "40m"), (10800, "3h"), (18600, "5h10m"),
        (108000, "30h"), (273600, "3d4h"), (3456000, "40d"), (94608000, "3y"), (-5, "<invalid>"),
    ],
)  # fmt: skip
def test_ages_are_kubectls(seconds: float, text: str) -> None:
    assert printing.duration(seconds) == text


@pytest.mark.parametrize(
    ("doc", "row"),
    [
        pytest.param(
            {
                "apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1"},
            },
            ("x", "2/2", "Running", "0", "9d"),
            id="pod",
        ),
        pytest.param(
            {
                "apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a"}]},
                "status": {
                    "phase": "Failed", "reason": "Evicted",
                    "containerStatuses": [{"ready": False, "restartCount": 3}],
                },
            },
            ("x", "0/1", "Evicted", "3", "9d"),
            id="evicted pod",
        ),
        pytest.param(
            {
                "apiVersion": "v1", "kind": "Node",
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "nodeInfo": {"kubeletVersion": "v1"},
                },
                "spec": {"unschedulable": True},
            },
            ("x", "Ready,SchedulingDisabled", "<none>", "9d", "v1"),
            id="node",
        ),
        pytest.param(
            {
                "apiVersion": "v1", "kind": "PersistentVolume",
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
                    "hostPath": {"path": "/x"}, "storageClassName": "fast",
                    "claimRef": {"namespace": "default", "name": "data"},
                },
                "status": {"phase": "Bound"},
            },
            ("x", "1Gi", "RWO,ROX", "Retain", "Bound", "default/data", "fast", "", "9d"),
            id="volume",
        ),
        pytest.param(
            {
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "spec": {"podSelector": {"matchLabels": {"a": "b"}}},
            },
            ("x", "a=b", "9d"),
            id="policy",
        ),
    ],
)  # fmt: skip
def test_rows(doc: dict[str, Any], row: tuple[str, ...]) -> None:
    obj = codec.parse({**doc, "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"}})
    assert printing.row(obj, printing.columns(obj.KIND), NOW) == row


def test_every_kind_has_a_table() -> None:
    assert printing.TABLES.keys() == codec.KINDS.keys()


@pytest.mark.parametrize(("kind", "field"), [("ConfigMap", "data"), ("Secret", "stringData")])
def test_what_is_immutable_keeps_its_data_and_its_word_until_it_is_deleted(
    run: Run, url: str, kind: str, field: str
) -> None:
    def text(value: str, immutable: str = "immutable: true", labels: str = "") -> str:
        meta = f"metadata: {{name: c, labels: {{{labels}}}}}"
        return f'apiVersion: v1\nkind: {kind}\n{meta}\n{immutable}\n{field}: {{a: "{value}"}}\n'

    run("apply", "-f", "-", stdin=text("1", immutable=""))
    assert "configured" in run("apply", "-f", "-", stdin=text("2")).stdout  # from now on
    said = f"{kind} default/c: immutable: true, so its data cannot change; delete the {kind} first"
    for other in (text("3"), text("2", immutable="immutable: false"), text("2", immutable="")):
        assert said in run("apply", "-f", "-", stdin=other, status=1).output
    assert "unchanged" in run("apply", "-f", "-", stdin=text("2")).stdout
    assert "configured" in run("apply", "-f", "-", stdin=text("2", labels="a: b")).stdout
    kept: Any = open_store(url).get(Key(kind, "default", "c"))
    assert kept.immutable and kept.data["a"] in ("2", "Mg==") and kept.metadata.labels == {"a": "b"}
    run("delete", kind.lower(), "c")
    run("apply", "-f", "-", stdin=text("3"))
