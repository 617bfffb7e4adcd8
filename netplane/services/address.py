"""Addresses as RFC 5952 writes them, whatever form an object uses: keys must equal what the kernel lists."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address


def canonical(text: str) -> str:
    """The one form of an address; what is none stays as it is, to be refused by name further on."""
    return _canonical(text) if ":" in text else text  # IPv4 has one form: leading zeroes are no address


@lru_cache(maxsize=1 << 16)
def _canonical(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return text
