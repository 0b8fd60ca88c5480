"""The store on SQLite and PostgreSQL: the same guarantees, by the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from benches import bench
from sqlalchemy import Connection, delete, text, update

from outlay.errors import InputError
from outlay.gateway.store import admin, schema
from outlay.gateway.store.batch import Forget, Outcome, Stored
from outlay.gateway.store.books import Charge, Grant, Refusal
from outlay.gateway.store.engine import open_engine
from outlay.gateway.store.migrate import upgrade
from outlay.gateway.store.store import Store, StoreError


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 120))


def test_what_is_reserved_is_settled_and_written_down(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            grant = await b.grant()
            assert await b.counters() == (0, 30)
            assert grant.left[0].left == 70
            done = await b.store.settle(grant.id, Charge(prompt=9, output=5, note="fine"))
            assert (done.tokens, done.left[0].left) == (14, 86)
            assert await b.counters() == (14, 0)
            (entry,) = await b.rows(schema.ledger)
            assert (entry.kind, entry.prompt, entry.output, entry.note) == ("settled", 9, 5, "fine")
            assert (entry.owner, entry.team, entry.reserved_tokens) == ("ann", "red", 30)
            assert await b.rows(schema.reservations) == []

    run(work)


def test_a_released_reservation_costs_nothing(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            grant = await b.grant()
            assert await b.store.release(grant.id, 429, "refused upstream")
            assert await b.counters() == (0, 0)
            assert not await b.store.release(grant.id)
            (entry,) = await b.rows(schema.ledger)
            assert (entry.kind, entry.status) == ("released", 429)

    run(work)


def test_settling_twice_charges_once(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            grant = await b.grant()
            await b.store.settle(grant.id, Charge(prompt=1, output=1))
            again = await b.store.settle(grant.id, Charge(prompt=1, output=1))
            assert again.late
            assert await b.counters() == (2, 0)

    run(work)


def test_concurrent_admissions_never_exceed_a_budget_and_use_it_up(database: str) -> None:
    async def work() -> None:
        async with bench(database, amount=3000) as b:
            other = Store(database)
            await other.start(upkeep=False)
            try:
                stores = [b.store, other]
                found = await asyncio.gather(*(stores[i % 2].admit(b.ask()) for i in range(300)))
                grants = [each for each in found if isinstance(each, Grant)]
                assert len(grants) == 100
                assert await b.counters() == (0, 3000)
                kinds = {each.kind for each in found if isinstance(each, Refusal)}
                assert kinds == {"busy"}
                await asyncio.gather(
                    *(stores[i % 2].settle(g.id, Charge(10, 0, 20)) for i, g in enumerate(grants))
                )
                assert await b.counters() == (3000, 0)
                last = await b.store.admit(b.ask())
                assert isinstance(last, Refusal)
                assert last.kind == "spent"
            finally:
                await other.stop()

    run(work)


def test_many_operations_share_a_transaction(database: str) -> None:
    async def work() -> None:
        async with bench(database, amount=10**6) as b:
            before = b.store.batches
            await asyncio.gather(*(b.grant() for _ in range(200)))
            assert b.store.batches - before < 100

    run(work)


def test_a_dead_workers_requests_are_charged_if_sent_and_released_if_not(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            dead = Store(database, lease=0.5)
            await dead.start(upkeep=False)
            sent = await dead.admit(b.ask())
            held = await dead.admit(b.ask(sent=False))
            promoted = await dead.admit(b.ask(sent=False))
            assert isinstance(sent, Grant)
            assert isinstance(held, Grant)
            assert isinstance(promoted, Grant)
            assert await dead.send(promoted.id)
            assert await b.store.sweep() == (0, 0)  # its leases are good
            await dead.stop()
            await asyncio.sleep(0.8)
            assert await b.store.sweep() == (2, 1)
            assert await b.counters() == (60, 0)
            kinds = {row.reservation: row.kind for row in await b.rows(schema.ledger)}
            assert kinds == {sent.id: "unknown", promoted.id: "unknown", held.id: "released"}
            late = await b.store.settle(sent.id, Charge(prompt=1, output=1))
            assert late.late
            assert await b.counters() == (60, 0)

    run(work)


def test_leases_are_renewed_while_the_worker_lives(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            alive = Store(database, lease=0.6)
            await alive.start()
            grant = await alive.admit(b.ask())
            assert isinstance(grant, Grant)
            await asyncio.sleep(1.5)
            assert await b.store.sweep() == (0, 0)
            assert (await alive.settle(grant.id, Charge(prompt=1, output=1))).tokens == 2
            await alive.stop()

    run(work)


def test_an_overrun_is_written_down_alerts_and_suspends_the_upstream(database: str) -> None:
    async def work() -> None:
        async with bench(database, amount=200) as b:
            grant = await b.grant()
            done = await b.store.settle(grant.id, Charge(prompt=10, output=50))
            assert done.overrun
            assert await b.counters() == (60, 0)
            assert [row.kind for row in await b.rows(schema.ledger)] == ["settled", "overrun"]
            (alert,) = await b.rows(schema.alerts)
            assert "used 60 tokens for m where 30 were allowed" in alert.message
            refused = await b.store.admit(b.ask())
            assert isinstance(refused, Refusal)
            assert refused.kind == "suspended"
            assert isinstance(await b.store.admit(b.ask(model="other", upstream="v")), Grant)
            await b.admin(admin.lift, upstream="u", model="m")
            assert isinstance(await b.store.admit(b.ask()), Grant)

    run(work)


def test_a_revoked_key_is_refused_from_the_next_admission_on_every_replica(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            other = Store(database)
            await other.start(upkeep=False)
            assert isinstance(await other.admit(b.ask()), Grant)
            await b.admin(admin.revoke_key, identity=b.key.id)
            refused = await other.admit(b.ask())
            assert isinstance(refused, Refusal)
            assert refused.kind == "revoked"
            await other.stop()

    run(work)


def test_a_lower_limit_stops_admissions_and_leaves_what_is_in_flight(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            other = Store(database)
            await other.start(upkeep=False)
            grant = await other.admit(b.ask())
            assert isinstance(grant, Grant)
            await b.admin(admin.set_amount, identity=b.budget.id, amount=20)
            assert isinstance(await other.admit(b.ask()), Refusal)
            assert (await other.settle(grant.id, Charge(prompt=10, output=20))).tokens == 30
            assert await b.counters() == (30, 0)
            await other.stop()

    run(work)


def test_a_duplicate_never_reserves_twice(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            twins = await asyncio.gather(
                *(b.store.admit(b.ask(idempotency="x", fingerprint="f")) for _ in range(5))
            )
            grants = [each for each in twins if isinstance(each, Grant)]
            assert len(grants) == 1
            assert all(
                each == Stored(0, "", b"", same=True) for each in twins if each is not grants[0]
            )
            outcome = Outcome(200, "application/json", b"{}")
            await b.store.settle(grants[0].id, Charge(prompt=1, output=1), outcome)
            again = await b.store.admit(b.ask(idempotency="x", fingerprint="f"))
            assert again == Stored(200, "application/json", b"{}", same=True)
            other = await b.store.admit(b.ask(idempotency="x", fingerprint="g"))
            assert isinstance(other, Stored)
            assert not other.same
            assert await b.counters() == (2, 0)

    run(work)


def test_idempotency_keys_are_scoped_per_key(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            await b.grant(idempotency="x", fingerprint="f")
            bob = (await b.admin(admin.create_key, name="bob")).key
            found = await b.store.admit(b.ask(key=bob, idempotency="x", fingerprint="f"))
            assert isinstance(found, Grant)

    run(work)


def test_an_outcome_is_forgotten_after_its_time_and_a_claim_when_it_is_given_up(
    database: str,
) -> None:
    async def work() -> None:
        async with bench(database) as b:
            b.store.keep = 0.3
            grant = await b.grant(idempotency="x", fingerprint="f")
            await b.store.settle(grant.id, Charge(), Outcome(200, "t", b"b"))
            await asyncio.sleep(0.6)
            assert isinstance(await b.store.admit(b.ask(idempotency="x")), Grant)
            b.store.keep = 60
            grant = await b.grant(idempotency="y", fingerprint="f")
            await b.store.release(grant.id, 429)
            assert isinstance(await b.store.admit(b.ask(idempotency="y")), Stored)
            await b.store.submit(Forget(b.key.id, "y"))
            assert isinstance(await b.store.admit(b.ask(idempotency="y")), Grant)

    run(work)


def test_a_claim_survives_until_its_worker_is_certainly_dead(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outlay.gateway.store import batch

    async def work() -> None:
        async with bench(database) as b:
            b.store.keep = 60
            grant = await b.grant(idempotency="x", fingerprint="f")
            await b.store.release(grant.id)
            assert isinstance(await b.store.admit(b.ask(idempotency="x")), Stored)
            monkeypatch.setattr(batch, "_STALE", 0.0)
            taken = await b.store.admit(b.ask(idempotency="x"))
            assert isinstance(taken, Grant)
            assert isinstance(await b.store.admit(b.ask(idempotency="x")), Stored)

    run(work)


def test_a_refused_request_leaves_no_idempotency_key_behind(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            for _ in range(2):
                found = await b.store.admit(b.ask(prompt=1000, idempotency="x"))
                assert isinstance(found, Refusal)

    run(work)


def test_the_ledger_and_the_audit_log_are_append_only(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            grant = await b.grant()
            await b.store.settle(grant.id, Charge(prompt=1, output=1))
            for table in (schema.ledger, schema.audit):
                for statement in (update(table).values(at=0), delete(table)):
                    with pytest.raises(StoreError):
                        await b.store.call(lambda c, now, s=statement: c.execute(s))
            assert len(await b.rows(schema.ledger)) == 1
            assert len(await b.rows(schema.audit)) == 2

    run(work)


def test_one_operation_that_fails_does_not_fail_its_neighbours(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:

            def wrong(connection: Connection, now: float) -> None:
                connection.execute(text("SELECT * FROM nothing_of_that_name"))

            results = await asyncio.gather(
                b.store.admit(b.ask()),
                b.store.call(wrong),
                b.admin(admin.set_amount, identity="missing", amount=1),
                b.store.admit(b.ask()),
                return_exceptions=True,
            )
            assert isinstance(results[0], Grant)
            assert isinstance(results[1], StoreError)
            assert isinstance(results[2], InputError)
            assert isinstance(results[3], Grant)
            assert await b.counters() == (0, 60)

    run(work)


def test_a_database_that_is_gone_admits_nothing_and_recovers(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            good = b.store.engine
            broken = (
                "sqlite:////nowhere/gateway.db"
                if database.startswith("sqlite")
                else "postgresql://outlay@127.0.0.1:1/x"
            )
            b.store.engine = open_engine(broken)
            with pytest.raises(StoreError):  # closes the connection that it had
                await b.store.call(lambda c, now: c.execute(text("SELECT * FROM missing")))
            with pytest.raises(StoreError):
                await b.store.admit(b.ask())
            b.store.engine = good
            assert isinstance(await b.store.admit(b.ask()), Grant)

    run(work)


def test_migrating_again_changes_nothing_and_bad_urls_are_refused(database: str) -> None:
    engine = open_engine(database)
    upgrade(engine)
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).all()
    engine.dispose()
    for url, message in (
        ("mysql://x/y", "SQLite and PostgreSQL are supported"),
        ("sqlite://", "in-memory"),
        ("not a url", "no database URL"),
    ):
        with pytest.raises(InputError, match=message):
            open_engine(url)


def test_the_migration_makes_the_schema_that_the_code_expects(database: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = open_engine(database)
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_a_rotated_key_hands_its_budgets_over(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            await b.store.settle((await b.grant()).id, Charge(prompt=10, output=20))
            made = await b.admin(admin.rotate_key, identity=b.key.id)
            assert (made.key.owner, made.key.team) == ("ann", "red")
            found = await b.store.admit(b.ask(key=made.key))
            assert isinstance(found, Grant)
            assert found.left[0].left == 40
            old = await b.store.admit(b.ask())
            assert isinstance(old, Refusal)
            assert old.kind == "revoked"

    run(work)


def test_a_secret_is_stored_hashed_and_shown_once(database: str) -> None:
    async def work() -> None:
        async with bench(database) as b:
            made = await b.admin(admin.create_key, name="bob")
            parts = admin.split(made.token)
            assert parts == (made.key.id, made.key.digest)
            secret = made.token.rsplit("_", 1)[0]
            rows = [str(row) for row in await b.rows(schema.keys)]
            assert not any(made.token in row or secret in row for row in rows)
            assert admin.split("olk_x_y") is None

    run(work)


@pytest.mark.parametrize(
    ("work", "fields", "message"),
    [
        (admin.create_key, {"name": ""}, "needs a name"),
        (admin.create_key, {"name": "a\nb"}, "control codes|needs a name"),
        (admin.create_key, {"name": "a", "role": "root"}, "role 'root'"),
        (admin.create_key, {"name": "a", "expires_at": 1.0}, "expired already"),
        (admin.create_key, {"name": "a", "models": [""]}, "patterns"),
        (admin.revoke_key, {"identity": "x"}, "no key has the id"),
        (admin.set_amount, {"identity": "x", "amount": -1}, "amount=-1"),
        (admin.archive_budget, {"identity": "x"}, "no budget has the id"),
        (admin.lift, {"upstream": "u", "model": "m"}, "is not suspended"),
    ],
)
def test_changes_that_cannot_be_are_refused(
    tmp_path: Any, work: Any, fields: dict[str, Any], message: str
) -> None:
    async def go() -> None:
        async with bench(f"sqlite:///{tmp_path}/g.db") as b:
            with pytest.raises(InputError, match=message):
                await b.admin(work, **fields)

    run(go)


def test_a_mistake_in_one_operation_is_its_own(database: str) -> None:
    async def work() -> None:
        def mistaken(connection: Connection, now: float) -> None:
            connection.execute(text("SELECT 1"))
            raise AttributeError("a mistake of ours")

        async with bench(database) as it:
            found = await asyncio.gather(
                *(it.grant(prompt=1, output=1) for _ in range(5)),
                it.store.call(mistaken),
                *(it.grant(prompt=1, output=1) for _ in range(5)),
                return_exceptions=True,
            )
            assert [type(each) for each in found].count(Grant) == 10
            assert isinstance(found[5], AttributeError)
            assert await it.counters() == (0, 20)

    run(work)
