"""The storage data plane of a container node."""
