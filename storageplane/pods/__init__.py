"""Publishing: the volumes of a pod prepared on this node, kept as they should be, and taken away."""
