"""Keys and budgets: what an operator changes, each change with a row in the audit log.

Secrets are 256 random bits, stored as SHA-256 (a slow hash would protect guessable secrets; these
are not) and compared in constant time. A key reads `olk_<id>_<secret>`; the id finds the row.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, insert, select, update

from outlay.errors import InputError
from outlay.gateway.store import catalogue, schema
from outlay.gateway.store.books import BudgetRow, Key, Mode, Unit
from outlay.gateway.windows import Window

Role = Literal["caller", "viewer", "owner", "admin"]
_SHAPE = re.compile(r"olk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_MOST = 2**53  # the largest amount that JSON carries exactly


@dataclass(frozen=True)
class NewKey:
    """A key that was made: the only time that its secret is shown."""

    key: Key
    token: str


def split(token: str) -> tuple[str, str] | None:
    """Id and digest of a presented key; None if it has not the shape of one."""
    match = _SHAPE.fullmatch(token)
    return None if match is None else (match[1], digest(token))


def digest(token: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(token.encode()).hexdigest()


def same(left: str, right: str) -> bool:
    """Equality in constant time."""
    return hmac.compare_digest(left.encode(), right.encode())


def create_key(
    connection: Connection,
    now: float,
    *,
    actor: str,
    name: str,
    owner: str = "",
    team: str = "",
    role: Role = "caller",
    models: Sequence[str] = (),
    expires_at: float | None = None,
) -> NewKey:
    """Make a key.

    Raises:
        InputError: for an empty or overlong name, an unknown role, or an expiry in the past.
    """
    for field, value in (("name", name), *(("owner", owner), ("team", team)) * bool(owner or team)):
        if value and not _NAME.fullmatch(value):
            raise InputError(f"{field} {value[:40]!r}; 1 to 200 characters without control codes")
    if not _NAME.fullmatch(name):
        raise InputError("a key needs a name of 1 to 200 characters")
    if role not in get_args(Role):
        raise InputError(f"role {role!r}; choose {', '.join(get_args(Role))}")
    if expires_at is not None and expires_at <= now:
        raise InputError("the key would have expired already; set expires_at in the future")
    if len(models) > 100 or any(not _NAME.fullmatch(pattern) for pattern in models):
        raise InputError("models: at most 100 patterns of 1 to 200 characters, such as gpt-4o*")
    identity = secrets.token_hex(8)
    token = f"olk_{identity}_{secrets.token_urlsafe(32)}"
    row = {
        "id": identity,
        "name": name,
        "digest": digest(token),
        "role": role,
        "owner": owner or name,
        "team": team,
        "models": json.dumps(list(models)),
        "created_at": now,
        "expires_at": expires_at,
        "revoked_at": None,
    }
    connection.execute(insert(schema.keys), row)
    catalogue.touch(connection)
    log(connection, now, actor, "create key", identity, {"name": name, "role": role})
    made = connection.execute(select(schema.keys).where(schema.keys.c.id == identity)).one()
    return NewKey(catalogue.key_of(made), token)


def revoke_key(connection: Connection, now: float, *, actor: str, identity: str) -> None:
    """Revoke a key: it is refused from the next request on.

    Raises:
        InputError: if there is no such key.
    """
    found = _key(connection, identity)
    if found.revoked_at is None:
        where = schema.keys.c.id == identity
        connection.execute(update(schema.keys).where(where).values(revoked_at=now))
        catalogue.touch(connection)
        log(connection, now, actor, "revoke key", identity, {"name": found.name})


def rotate_key(
    connection: Connection, now: float, *, actor: str, identity: str, grace: float = 0.0
) -> NewKey:
    """A new key in place of one, with its name, owner, team, role and budgets.

    Budgets that name the old key name the new one from now on; what it has spent stays spent.

    Args:
        connection: a transaction.
        now: the database's time.
        actor: who does it.
        identity: of the old key.
        grace: seconds that the old key still works; its budgets are then shared through its owner
            only, so a budget that names the key moves at once.

    Raises:
        InputError: if there is no such key, it was revoked, or grace is negative.
    """
    old = _key(connection, identity)
    if old.revoked_at is not None:
        raise InputError(f"key {identity} was revoked; create a new one")
    if not 0 <= grace <= 30 * 86_400:
        raise InputError(f"grace={grace}; between 0 and 30 days of seconds")
    key = catalogue.key_of(old)
    made = create_key(
        connection,
        now,
        actor=actor,
        name=key.name,
        owner=key.owner,
        team=key.team,
        role=key.role,  # type: ignore[arg-type]
        models=key.models,
        expires_at=key.expires_at,
    )
    budgets = schema.budgets
    connection.execute(
        update(budgets).where(budgets.c.key_id == identity).values(key_id=made.key.id)
    )
    end = {"expires_at": now + grace} if grace else {"revoked_at": now}
    connection.execute(update(schema.keys).where(schema.keys.c.id == identity).values(**end))
    catalogue.touch(connection)
    log(connection, now, actor, "rotate key", identity, {"new": made.key.id, "grace": grace})
    return made


def _key(connection: Connection, identity: str) -> Any:
    found = connection.execute(
        select(schema.keys).where(schema.keys.c.id == identity)
    ).one_or_none()
    if found is None:
        raise InputError(f"no key has the id {identity[:40]!r}; see 'outlay keys list'")
    return found


def create_budget(
    connection: Connection,
    now: float,
    *,
    actor: str,
    name: str,
    unit: Unit,
    amount: int,
    window: Window,
    mode: Mode = "reject",
    key_id: str | None = None,
    owner: str | None = None,
    team: str | None = None,
    model: str | None = None,
    route: str | None = None,
) -> BudgetRow:
    """Make a budget for the requests that match every filter given; none is for all requests.

    Raises:
        InputError: for a name, unit, amount, mode or key that cannot be.
    """
    if not _NAME.fullmatch(name):
        raise InputError("a budget needs a name of 1 to 200 characters")
    if unit not in get_args(Unit):
        raise InputError(f"unit {unit!r}; choose {', '.join(get_args(Unit))}")
    if mode not in get_args(Mode):
        raise InputError(f"mode {mode!r}; choose {', '.join(get_args(Mode))}")
    _check_amount(amount)
    filters = {"key_id": key_id, "owner": owner, "team": team, "model": model, "route": route}
    for field, value in filters.items():
        if value is not None and not _NAME.fullmatch(value):
            raise InputError(f"{field} {value[:40]!r}; 1 to 200 characters, or leave it out")
    if key_id is not None:
        _key(connection, key_id)
    identity = secrets.token_hex(8)
    row = {
        "id": identity,
        "name": name,
        "unit": unit,
        "amount": amount,
        "window": window.kind,
        "zone": window.zone,
        "seconds": window.seconds,
        "mode": mode,
        **filters,
        "created_at": now,
        "archived_at": None,
    }
    connection.execute(insert(schema.budgets), row)
    catalogue.touch(connection)
    log(connection, now, actor, "create budget", identity, {"name": name, "amount": amount})
    made = connection.execute(select(schema.budgets).where(schema.budgets.c.id == identity)).one()
    return catalogue.budget_of(made)


def set_amount(
    connection: Connection, now: float, *, actor: str, identity: str, amount: int
) -> None:
    """Change a budget's limit; a lower one only stops admissions.

    Raises:
        InputError: if there is no such budget, or the amount cannot be.
    """
    _check_amount(amount)
    old = _budget(connection, identity)
    where = schema.budgets.c.id == identity
    connection.execute(update(schema.budgets).where(where).values(amount=amount))
    catalogue.touch(connection)
    detail = {"from": old.amount, "to": amount}
    log(connection, now, actor, "change budget", identity, detail)


def archive_budget(connection: Connection, now: float, *, actor: str, identity: str) -> None:
    """Stop charging a budget; its history stays.

    Raises:
        InputError: if there is no such budget.
    """
    _budget(connection, identity)
    where = schema.budgets.c.id == identity
    connection.execute(update(schema.budgets).where(where).values(archived_at=now))
    catalogue.touch(connection)
    log(connection, now, actor, "archive budget", identity, {})


def _budget(connection: Connection, identity: str) -> Any:
    budgets = schema.budgets
    query = select(budgets).where(budgets.c.id == identity, budgets.c.archived_at.is_(None))
    found = connection.execute(query).one_or_none()
    if found is None:
        raise InputError(f"no budget has the id {identity[:40]!r}; see 'outlay budgets list'")
    return found


def _check_amount(amount: int) -> None:
    if not 0 <= amount <= _MOST:
        raise InputError(f"amount={amount}; between 0 and {_MOST}")


def lift(connection: Connection, now: float, *, actor: str, upstream: str, model: str) -> None:
    """Lift the suspension of a model on an upstream.

    Raises:
        InputError: if it is not suspended.
    """
    table = schema.suspensions
    done = connection.execute(
        table.delete().where(table.c.upstream == upstream, table.c.model == model)
    )
    if not done.rowcount:
        raise InputError(f"{model[:40]!r} on {upstream[:40]!r} is not suspended")
    catalogue.touch(connection)
    log(connection, now, actor, "lift suspension", f"{upstream}/{model}"[:200], {})


def log(
    connection: Connection,
    now: float,
    actor: str,
    action: str,
    target: str,
    detail: Mapping[str, Any],
) -> None:
    """Write a row of the audit log."""
    row = {
        "at": now,
        "actor": actor,
        "action": action,
        "target": target,
        "detail": json.dumps(detail),
    }
    connection.execute(insert(schema.audit), row)
