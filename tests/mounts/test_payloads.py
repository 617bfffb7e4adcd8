"""configMap, secret, downwardAPI, projected: objects as files, and how they follow their objects.

ROOT/pods/UID/volumes/kubernetes.io~configmap/V   a directory   ─┐
ROOT/pods/UID/volumes/kubernetes.io~secret/V      tmpfs          ├─ read-only at ─> TARGET/<volume>
ROOT/pods/UID/volumes/kubernetes.io~projected/V   tmpfs         ─┘
"""

from __future__ import annotations

import base64
import json
import os
import stat
from typing import Any

import pytest

from netplane.model.errors import Invalid, KernelError, NetplaneError, Unavailable
from netplane.model.facts import Plan
from netplane.model.storage_facts import Directory, File, Payload
from storageplane.host import mountinfo

from .bed import Bed, config_map, container, secret, world

pytestmark = pytest.mark.root
TOKEN = {"annotations": {"kubernetes.io/service-account.name": "default"}}
ACCOUNT = "kubernetes.io/service-account-token"

CLASH = {
    "sources": [
        {"configMap": {"name": "c"}},
        {"secret": {"name": "s", "items": [{"key": "a", "path": "a/b"}]}},
    ]
}


def volume(kind: str, **source: Any) -> dict[str, Any]:
    return {"name": "v", kind: source}


def modes(bed: Bed, *paths: str) -> list[int]:
    return [stat.S_IMODE((bed.target / "v" / p).stat().st_mode) for p in paths]


def test_a_config_map_shows_its_keys_and_follows_it_when_published_again(bed: Bed) -> None:
    before = bed.tree()
    pod = bed.pod(volume("configMap", name="c"))
    bed.publish(pod, world(config_map(a="1", b_conf="2")))
    place = bed.target / "v"
    assert sorted(p.name for p in place.iterdir() if p.name[:2] != "..") == ["a", "b.conf"]
    assert ((place / "a").read_text(), (place / "b.conf").read_text()) == ("1", "2")
    assert modes(bed, "a") == [0o644]
    bed.publish(pod, world(config_map(a="3", c="4")))
    assert ((place / "a").read_text(), (place / "c").read_text()) == ("3", "4")
    assert not os.path.lexists(place / "b.conf")
    bed.unpublish()
    bed.clean(before)


def test_items_choose_paths_and_modes(bed: Bed) -> None:
    items = [{"key": "a", "path": "conf/deep/a.txt", "mode": 0o400}, {"key": "b", "path": "b"}]
    bed.publish(bed.pod(volume("configMap", name="c", items=items, defaultMode=0o600)),
                world(config_map(a="1", b="2", hidden="3")))  # fmt: skip
    place = bed.target / "v"
    assert (place / "conf/deep/a.txt").read_text() == "1"
    assert modes(bed, "conf/deep/a.txt", "b") == [0o400, 0o600]
    assert not (place / "hidden").exists()
    bed.unpublish()


def test_binary_data_comes_whole(bed: Bed) -> None:
    made = {**config_map(), "binaryData": {"raw": "AAH+/w=="}}
    bed.publish(bed.pod(volume("configMap", name="c")), world(made))
    assert (bed.target / "v/raw").read_bytes() == b"\x00\x01\xfe\xff"
    bed.unpublish()


def test_a_secret_is_on_tmpfs_only_and_stands_nowhere_else(bed: Bed) -> None:
    before = bed.tree()
    pod = bed.pod(volume("secret", secretName="s", defaultMode=0o400))
    done = bed.publish(pod, world(secret(password="hunter2")))
    assert (bed.target / "v/password").read_text() == "hunter2"
    assert modes(bed, "password") == [0o400]
    within = [m for m in mountinfo.beneath(str(bed.base)) if m.fstype == "tmpfs"]
    assert len(within) == 2  # the volume, and its target
    for mounted in reversed(within):
        os.system(f"umount {mounted.point}")  # what lies beneath is what the disk has
    for path in bed.base.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path
    assert "hunter2" not in repr(done)
    bed.unpublish()
    bed.clean(before)


def test_a_secret_is_not_written_where_its_tmpfs_is_missing(bed: Bed) -> None:
    fact = Payload(path="pods/x", files=(File("password", 0o400, b"hunter2"),))
    bed.driver.apply(Plan(add=(Directory(path="pods/x"),)))
    with pytest.raises(KernelError, match="no secret goes to disk") as caught:
        bed.driver.apply(Plan(add=(fact,)))
    assert "hunter2" not in str(caught.value)
    assert list((bed.root / "pods/x").iterdir()) == []


@pytest.mark.parametrize("kind", ["configMap", "secret"])
def test_containers_cannot_write(bed: Bed, kind: str) -> None:
    source = {"name": "c"} if kind == "configMap" else {"secretName": "s"}
    bed.publish(bed.pod(volume(kind, **source)), world(config_map(a="1"), secret(a="1")))
    with pytest.raises(OSError, match="Read-only"):
        (bed.target / "v/new").write_text("x")
    bed.unpublish()


@pytest.mark.parametrize(
    ("kind", "source", "error", "said"),
    [
        ("configMap", {"name": "absent"}, Unavailable, "ConfigMap default/absent does not exist"),
        ("secret", {"secretName": "absent"}, Unavailable, "Secret default/absent does not exist"),
        ("configMap", {"name": "c", "items": [{"key": "z", "path": "z"}]}, Unavailable, "has no key 'z'"),
        ("secret", {"secretName": "s", "items": [{"key": "z", "path": "z"}]}, Unavailable, "has no key 'z'"),
        ("configMap", {"name": "big"}, Invalid, "more than 1048576 bytes"),
        (
            "projected",
            CLASH,
            Invalid,
            "cannot be a file and the directory of",
        ),
        ("projected", {"sources": [{"serviceAccountToken": {"path": "t"}}]}, Unavailable, ACCOUNT),
        (
            "projected",
            {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]},
            Unavailable,
            "no token of the service account default for the audience 'vault'",
        ),
        ("projected", {"sources": [{"clusterTrustBundle": {"path": "t"}}]}, Invalid, "clusterTrustBundle"),
        ("image", {"reference": "x"}, Invalid, "image is not supported"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_said_and_leaves_nothing(
    bed: Bed, kind: str, source: dict[str, Any], error: type[NetplaneError], said: str
) -> None:
    before = bed.tree()
    objects = world(config_map(a="hunter2"), secret(a="hunter2"), config_map("big", a="x" * (1 << 20), b="x"))
    with pytest.raises(error, match=said) as caught:
        bed.publish(bed.pod(volume(kind, **source)), objects)
    assert "hunter2" not in str(caught.value) and "v" in str(caught.value)
    bed.clean(before)


def test_what_is_optional_may_be_missing_and_come_later(bed: Bed) -> None:
    pod = bed.pod(
        volume("configMap", name="c", optional=True),
        {"name": "s", "secret": {"secretName": "s", "optional": True, "items": [{"key": "k", "path": "k"}]}},
    )
    bed.publish(pod, world(secret(other="1")))
    assert [n for n in os.listdir(bed.target / "v") if n[:2] != ".."] == []
    assert [n for n in os.listdir(bed.target / "s") if n[:2] != ".."] == []
    bed.publish(pod, world(config_map(a="1"), secret(k="2")))
    assert (bed.target / "v/a").read_text() + (bed.target / "s/k").read_text() == "12"
    bed.unpublish()


def test_the_downward_api_shows_the_pod(bed: Bed) -> None:
    fields = {
        "name": "metadata.name", "ns": "metadata.namespace", "uid": "metadata.uid",
        "labels": "metadata.labels", "app": "metadata.labels['app']", "notes": "metadata.annotations",
    }  # fmt: skip
    resources = {
        "cpu": ("limits.cpu", "1m"), "cores": ("limits.cpu", "1"), "mem": ("limits.memory", "1Mi"),
        "asked": ("requests.memory", "1"),
    }  # fmt: skip
    items = [{"path": p, "fieldRef": {"fieldPath": f}} for p, f in fields.items()]
    items += [
        {"path": p, "resourceFieldRef": {"containerName": "main", "resource": r, "divisor": d}}
        for p, (r, d) in resources.items()
    ]
    meta = {"labels": {"b": "2", "app": "web"}, "annotations": {"note": 'a "b"\n'}}
    limits = {"limits": {"cpu": "1500m", "memory": "64Mi"}}
    pod = bed.pod(volume("downwardAPI", items=items), meta=meta, containers=[container(resources=limits)])
    bed.publish(pod)
    seen = {i["path"]: (bed.target / "v" / i["path"]).read_text() for i in items}
    assert seen == {
        "name": "p", "ns": "default", "uid": "uid-1", "labels": 'app="web"\nb="2"', "app": "web",
        "notes": 'note="a \\"b\\"\\n"', "cpu": "1500", "cores": "2", "mem": "64", "asked": str(64 << 20),
    }  # fmt: skip
    bed.publish(bed.pod(volume("downwardAPI", items=items), meta={"labels": {"app": "db"}},
                        containers=[container(resources=limits)]))  # fmt: skip
    assert (bed.target / "v/labels").read_text() == 'app="db"'
    bed.unpublish()


def test_a_projected_volume_holds_all_its_sources(bed: Bed) -> None:
    """As Kubernetes injects it into every pod: token, CA and namespace."""
    name = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [name]}},
        {"secret": {"name": "s", "items": [{"key": "k", "path": "sub/k", "mode": 0o400}]}},
    ]
    objects = [config_map("ca", ca_crt="CERT"), secret("t", ACCOUNT, TOKEN, token="TOK"), secret(k="K")]
    bed.publish(bed.pod(volume("projected", sources=sources, defaultMode=0o440)), world(*objects))
    place = bed.target / "v"
    shown = {n: (place / n).read_text() for n in ("token", "ca.crt", "namespace", "sub/k")}
    assert shown == {"token": "TOK", "ca.crt": "CERT", "namespace": "default", "sub/k": "K"}
    assert modes(bed, "token", "ca.crt", "sub/k") == [0o440, 0o440, 0o400]
    assert {m.fstype for m in mountinfo.beneath(str(place))} == {"tmpfs"}
    bed.unpublish()


def jwt(word: str, **claims: Any) -> str:
    """A token that ends in a word; its signature is nobody's business here."""
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.{word}"


def test_a_token_is_of_the_audience_that_is_asked_for_and_follows_its_secret(bed: Bed) -> None:
    sources = [
        {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
        {"serviceAccountToken": {"path": "any"}},
    ]
    pod = bed.pod(volume("projected", sources=sources))
    mine = secret("a", ACCOUNT, TOKEN, token=jwt("a", aud=["vault", "db"], exp=2000))
    others = [
        secret("b", ACCOUNT, TOKEN, token=jwt("b", aud="vault", exp=1000)),
        secret("c", ACCOUNT, TOKEN, token=jwt("c", aud="api", exp=3000)),
        secret("d", ACCOUNT, {**TOKEN, "annotations": {}}, token=jwt("d", aud="vault", exp=9000)),
        secret("e", "Opaque", TOKEN, token=jwt("e", aud="vault", exp=9000)),
    ]
    bed.publish(pod, world(mine, *others))
    shown = [(bed.target / "v" / name).read_text()[-2:] for name in ("vault", "any")]
    assert shown == [".a", ".c"]
    newer = secret("b", ACCOUNT, TOKEN, token=jwt("B", aud="vault", exp=4000))
    bed.publish(pod, world(mine, newer, *others[1:]))
    assert (bed.target / "v/vault").read_text()[-2:] == ".B"
    bed.unpublish()
    with pytest.raises(Unavailable, match="for the audience 'vault'; there are some for api: ") as caught:
        bed.publish(pod, world(*others[1:]))
    assert "e30" not in str(caught.value)


@pytest.mark.parametrize("seconds", [0, 599, (1 << 32) + 1])
def test_a_lifetime_that_no_token_has_is_refused(bed: Bed, seconds: int) -> None:
    sources = [{"serviceAccountToken": {"path": "t", "expirationSeconds": seconds}}]
    with pytest.raises(Invalid, match="expirationSeconds: 600"):
        bed.pod(volume("projected", sources=sources))


def test_fs_group_reads_files_and_owns_the_directory(bed: Bed) -> None:
    pod = bed.pod(volume("secret", secretName="s", defaultMode=0o400), securityContext={"fsGroup": 4242})
    bed.publish(pod, world(secret(a="1")))
    have = (bed.target / "v/a").stat()
    assert (have.st_gid, stat.S_IMODE(have.st_mode)) == (4242, 0o440)
    top = (bed.target / "v").stat()
    assert top.st_gid == 4242 and top.st_mode & stat.S_ISGID
    bed.unpublish()


@pytest.mark.parametrize(
    "path",
    ["../a", "a/../b", "/etc/passwd", "..hidden", "", "nul\0", "x" * 256, "é" * 128, "a/" * 2050 + "b"],
)
def test_a_path_that_leads_outside_or_is_no_name_is_refused(bed: Bed, path: str) -> None:
    with pytest.raises(Invalid, match=r"items\[0\].path"):
        bed.pod(volume("configMap", name="c", items=[{"key": "a", "path": path}]))


@pytest.mark.parametrize("path", ["é" * 127, "漢字/🙂", "x" * 255, "a b\tc", "-rf"])
def test_unusual_names_are_names(bed: Bed, path: str) -> None:
    bed.publish(
        bed.pod(volume("configMap", name="c", items=[{"key": "a", "path": path}])), world(config_map(a="1"))
    )
    assert (bed.target / "v" / path).read_text() == "1"
    bed.unpublish()
