"""The network data plane of a container node."""
