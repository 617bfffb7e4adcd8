"""Fixtures that several modules here share."""

from ..dns_served import again, certificate, ns, served, upstream

__all__ = ["again", "certificate", "ns", "served", "upstream"]
