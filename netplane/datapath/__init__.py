"""Attachments and the node into the hooks of the packet path."""
