"""Real clients of the CNI plugin: cnitool, containerd, podman, and the reference plugins beside ours."""
