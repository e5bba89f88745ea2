"""Keys for machines; the database has only their digests."""

import hashlib
import secrets

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import Taken, Unauthorized, refusing
from booking.models import ApiKey, Tenant


def issue(session: Session, *, tenant_id: int, name: str, token: str | None = None) -> str:
    """The new key's token, which can't be had again."""
    token = secrets.token_urlsafe() if token is None else token
    refusals = {
        "api_keys_tenant_id_name_key": Taken(f"there is a key {name}"),
        "api_keys_digest_key": Taken("the token is in use"),
    }
    with refusing(session, refusals):
        session.add(ApiKey(tenant_id=tenant_id, name=name, digest=_digest(token)))
    return token


def authenticate(session: Session, token: str) -> Tenant:
    """The tenant whose key this is; counts the use."""
    tenant_id = session.scalar(
        update(ApiKey)
        .where(ApiKey.digest == _digest(token), ApiKey.revoked_at.is_(None))
        .values(uses=ApiKey.uses + 1)
        .returning(ApiKey.tenant_id)
    )
    if tenant_id is None:
        raise Unauthorized("unknown or revoked key")
    return fetch(session, Tenant, tenant_id)


def revoke(session: Session, *, tenant_id: int, name: str) -> None:
    session.execute(
        update(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.name == name).values(revoked_at=func.now())
    )


def uses(session: Session, *, tenant_id: int) -> dict[str, int]:
    """Number of uses by the key's name."""
    rows = session.execute(select(ApiKey.name, ApiKey.uses).where(ApiKey.tenant_id == tenant_id))
    return {name: count for name, count in rows}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
