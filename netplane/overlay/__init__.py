"""Nodes into VXLAN devices, forwarding entries, neighbours and routes."""
