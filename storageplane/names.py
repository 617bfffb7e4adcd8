"""The annotations, finalizers and names that Kubernetes' volume controllers write, and our own."""

from __future__ import annotations

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"  # on a claim: its binding is whole
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"  # on either: not the user's own choice
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"

PVC_PROTECTION = "kubernetes.io/pvc-protection"
PV_PROTECTION = "kubernetes.io/pv-protection"
DATA = "storageplane.io/data"  # finalizer of a volume whose data we made and have not yet removed

DIRECTORY = "storageplane.io/directory"  # the provisioner of directories, unless its class says otherwise
LOCAL = "storageplane.io/local"  # the provisioner of what the class says, or the machine can do best
BACKEND = "storageplane.io/backend"  # annotations of a volume: see storageplane.backends
OVERCOMMIT = "storageplane.io/overcommit"
GROWN = "storageplane.io/grown"  # bytes that the file system in its image is known to have
LOST = "storageplane.io/lost-node"  # the node that an operator gave up, and the volume with it
CSI = "csi.storageplane.io"  # what our CSI driver calls itself
NO_PROVISIONER = "kubernetes.io/no-provisioner"
SIZE_ENFORCED = "storageplane.io/size-enforced"  # annotation: "false" where the size is only recorded
IN_USE = "storageplane.io/in-use"  # annotation of a volume: who has it published, as JSON (claims.access)
HOSTNAME = "kubernetes.io/hostname"

SNAPSHOT_CLAIM = "snapshot.storage.kubernetes.io/pvc-as-source-protection"  # a snapshot is taken of it
SNAPSHOT_SOURCE = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
SNAPSHOT_BOUND = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
SNAPSHOT_CONTENT = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
SNAPSHOT_SECRET = "snapshot.storage.kubernetes.io/deletion-secret"  # annotations -name and -namespace
SNAPSHOT_HOST = "storageplane.io/hostname"  # annotation of a content: where it lies
FILE_SYSTEM = "storageplane.io/file-system"  # annotation of a content: of the image that was copied
SOURCE = "storageplane.io/source"  # annotations of a volume: what its data is a copy of, beneath the root,
FILLED = "storageplane.io/filled"  # and that it has been copied

FILESYSTEM_DIR = "volumes"  # beneath the root: one directory per provisioned volume
NODE_EXPAND = "storageplane.io/node-expand"  # annotation: bytes that the node is to be told of
DELETION_SECRET = "volume.kubernetes.io/provisioner-deletion-secret"  # annotations -name and -namespace
