"""Fixtures that several modules here share."""

from ..dns_served import again, certificate, ns, served, upstream
from ..services_net import services_net

__all__ = ["again", "certificate", "ns", "served", "services_net", "upstream"]
