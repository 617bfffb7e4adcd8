"""Services and their endpoints as nftables facts: virtual IPs and node ports on this node."""

from .room import ServicesRoom

__all__ = ["ServicesRoom"]
