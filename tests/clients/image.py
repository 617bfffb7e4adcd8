"""A container image and a root file system of busybox, made here: no registry is asked.

The archive is `docker save`'s (manifest.json, a configuration, a layer); ctr and podman both load it.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from .peers import program

APPLETS = ("sh", "cat", "hostname", "httpd", "ip", "nc", "ping", "rm", "sleep", "wget")
DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "var", "www")


def layer() -> bytes:
    """The root file system as a tar."""
    return _tar({"bin/busybox": Path(program("busybox")).read_bytes(), "www/index.html": b"hello\n"})


def rootfs(at: Path) -> Path:
    """The same, unpacked."""
    with tarfile.open(fileobj=io.BytesIO(layer())) as tar:
        tar.extractall(at)
    return at


def archive(path: Path, name: str) -> Path:
    """An image with this name, whose default command serves "hello" on port 8080."""
    root = layer()
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": [],
                "Cmd": ["/bin/httpd", "-f", "-h", "/www", "-p", "8080"],
                "Env": ["PATH=/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(root).hexdigest()}"]},
            "history": [{"created_by": "tests/clients/image.py"}],
        }
    ).encode()
    digest = hashlib.sha256(configuration).hexdigest()
    manifest = json.dumps([{"Config": f"{digest}.json", "RepoTags": [name], "Layers": ["layer.tar"]}])
    files = {f"{digest}.json": configuration, "layer.tar": root, "manifest.json": manifest.encode()}
    path.write_bytes(_tar(files, root=False))
    return path


def _tar(files: dict[str, bytes], root: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in DIRECTORIES if root else ():
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for name in APPLETS if root else ():
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()
