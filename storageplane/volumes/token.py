"""serviceAccountToken: nobody issues tokens here, so it is shown what an operator put into a Secret.

Rule 1: a Secret of type kubernetes.io/service-account-token, annotated with the pod's service account, as
        Kubernetes itself fills them, and as anybody may who signs tokens (a cron job, Vault, SPIRE).
Rule 2: an audience is honoured: only a token is shown that names it in its own claims (RFC 7519, "aud").
        Without one, any token of the account will do.
Rule 3: of several the one that lasts longest ("exp"; one without lasts for ever). expirationSeconds asks for
        a lifetime that nobody here can give: who makes the token decides, and replaces it in time.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from netplane.model.errors import Unavailable
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import Secret
from netplane.model.volumes import ServiceAccountTokenProjection

from . import fields, secret

TYPE = "kubernetes.io/service-account-token"
ACCOUNT = "kubernetes.io/service-account.name"


class Token(NamedTuple):
    """``expires``: Unix time; infinity for never."""

    expires: float
    secret: str
    value: bytes
    audiences: tuple[str, ...]


def find(pod: Pod, where: str, wanted: ServiceAccountTokenProjection, snapshot: Snapshot) -> bytes:
    """Raises Unavailable while there is none, saying what would be one."""
    account = fields.account(pod)
    have = [
        _read(found)
        for found in snapshot.list(Secret, pod.namespace)
        if found.type == TYPE and found.metadata.annotations.get(ACCOUNT) == account
    ]
    fitting = [t for t in have if t.value and (not wanted.audience or wanted.audience in t.audiences)]
    if fitting:
        return max(fitting).value
    others = sorted({audience for token in have for audience in token.audiences})
    asked = f" for the audience {wanted.audience!r}" if wanted.audience else ""
    there = f"; there are some for {', '.join(others)}" if asked and others else ""
    raise Unavailable(
        f"{where}: no token of the service account {account}{asked}{there}: without an API server it is "
        f"taken from a Secret of type {TYPE} with the annotation {ACCOUNT}: {account} and the key token"
    )


def _read(found: Secret) -> Token:
    value = secret.decoded(found).get("token", b"")
    claims = _claims(value)
    audiences, expires = claims.get("aud", ()), claims.get("exp")
    listed = [audiences] if isinstance(audiences, str) else audiences
    named = tuple(str(a) for a in listed) if isinstance(listed, list) else ()
    return Token(float(expires) if isinstance(expires, int) else float("inf"), found.name, value, named)


def _claims(token: bytes) -> dict[str, Any]:
    """What a JWT says of itself, unverified: that is for whoever is shown it. {} for what is none."""
    parts = token.strip().split(b".")
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + b"=="))
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
