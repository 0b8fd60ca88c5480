"""The store: a thread with one connection, and group commits.

Requests put operations in a queue; the thread takes all that have gathered while the last
transaction ran and does them in the next one (`batch.Batch`). So the cost of a commit is shared by
all requests that wait for it, and nothing is acknowledged before it is committed.

When the database fails, every waiting operation fails with `StoreError`: the gateway fails closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from outlay.errors import OutlayError
from outlay.gateway.store.batch import (
    Admit,
    Batch,
    Call,
    Operation,
    Outcome,
    Release,
    Renew,
    Send,
    Settle,
    Settled,
    Stored,
    Sweep,
)
from outlay.gateway.store.books import Ask, Charge, Grant, Key, Refusal
from outlay.gateway.store.catalogue import Catalogue
from outlay.gateway.store.engine import Durability, open_engine

_MOST = 512  # operations in one transaction
_Answer = TypeVar("_Answer")


class StoreError(OutlayError, RuntimeError):
    """The database does not answer; nothing is admitted until it does."""


@dataclass
class _Waiting:
    operation: Operation
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    answered: bool = False


@dataclass
class Store:
    """Keys, budgets, reservations and the ledger in a database.

    Args:
        url: see `engine.open_engine`.
        durability: see `engine`.
        lease: seconds that a reservation outlives its worker's last renewal.
        keep: seconds that the outcome of a request with an idempotency key is kept.
    """

    url: str
    durability: Durability = "machine"
    lease: float = 30.0
    keep: float = 86_400.0
    worker: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.engine: Engine = open_engine(self.url, self.durability)
        self.known = Catalogue()
        self.batches = self.operations = 0
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._ahead: _Waiting | None = None  # taken from the queue, for the next transaction
        self._doubtful: list[str] = []  # admissions whose commit may have happened unseen
        self._unwanted: queue.SimpleQueue[str] = queue.SimpleQueue()  # whose caller had gone
        self._thread = threading.Thread(target=self._work, name="outlay-store", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    # -- life -----------------------------------------------------------------------------------

    async def start(self, *, upkeep: bool = True) -> None:
        """Start the thread, read the catalogue, and keep leases alive and swept."""
        self._thread.start()
        await self.refresh()
        if upkeep:
            self._tasks = [
                asyncio.create_task(self._every(self.lease / 3, Renew(self.worker, self.lease))),
                asyncio.create_task(self._every(self.lease / 2, Sweep())),
            ]

    async def stop(self) -> None:
        """Finish what is queued, and close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self.engine.dispose()

    async def _every(self, seconds: float, operation: Operation) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await self.submit(operation)
            await asyncio.sleep(seconds)

    # -- operations -----------------------------------------------------------------------------

    async def admit(self, ask: Ask) -> Grant | Refusal | Stored:
        """Reserve the worst case of an attempt, or say why not.

        If the caller is cancelled meanwhile, what was reserved is released.
        """
        future = self.submit(Admit(ask, self.worker, self.lease, self.keep))
        try:
            return cast("Grant | Refusal | Stored", await future)
        except asyncio.CancelledError:
            # Cancelled between the grant and waking up to it: the future knows of it, nobody else.
            if not future.cancelled() and future.exception() is None:
                self._take_back(future.result())
            raise

    async def send(self, reservation: str) -> bool:
        """Note that a held reservation goes upstream; False if it is gone."""
        return bool(await self.submit(Send(reservation)))

    async def settle(
        self, reservation: str, charge: Charge, outcome: Outcome | None = None
    ) -> Settled:
        """Close a reservation with what was used."""
        return cast(Settled, await self.submit(Settle(reservation, charge, outcome)))

    async def release(
        self, reservation: str, status: int = 0, note: str = "", outcome: Outcome | None = None
    ) -> bool:
        """Close a reservation that cost nothing; False if it is gone."""
        return bool(await self.submit(Release(reservation, status, note, outcome)))

    async def sweep(self) -> tuple[int, int]:
        """Close what dead workers left; numbers of unknown and released."""
        return cast("tuple[int, int]", await self.submit(Sweep()))

    async def call(self, run: Callable[[Connection, float], _Answer]) -> _Answer:
        """Run a function in a transaction of the store's thread."""
        return cast(_Answer, await self.submit(Call(run)))

    async def refresh(self) -> None:
        """Read the catalogue if it has moved."""
        await self.submit(Call(_nothing))

    def key(self, identity: str) -> Key | None:
        """A key of the catalogue in memory."""
        return self.known.keys.get(identity)

    # -- the thread -----------------------------------------------------------------------------

    def submit(self, operation: Operation, *, answered: bool = False) -> asyncio.Future[Any]:
        """Queue an operation: it is done even if nobody waits for its result.

        Args:
            operation: what to do.
            answered: whether its caller goes on without waiting, and will find it done all the
                same: by admissions, and by every later `call`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._queue.put(_Waiting(operation, loop, future, answered))
        return future

    def _work(self) -> None:
        connection: Connection | None = None
        while True:
            waiting = self._gather()
            if not waiting:
                break
            try:
                if connection is None:
                    connection = self.engine.connect()
                results = self._transact(connection, [each.operation for each in waiting])
            except SQLAlchemyError as error:
                self._doubt(waiting)
                if connection is not None:
                    with contextlib.suppress(SQLAlchemyError):
                        connection.invalidate()
                    connection.close()
                    connection = None
                if len(waiting) > 1:
                    self._one_by_one(waiting)
                else:
                    self._resolve(waiting, [_failed(error)])
            except Exception as error:  # of one operation: undone, and nobody else's
                assert connection is not None
                connection.rollback()
                if len(waiting) == 1:
                    self._resolve(waiting, [error])
                else:
                    self._one_by_one(waiting)
            else:
                self._resolve(waiting, results)
        if connection is not None:
            connection.close()

    def _gather(self) -> list[_Waiting]:
        """What is in the queue.

        A `Call` reads what is written, and a transaction writes at its end: so a call is not in one
        transaction with what came before it and has been answered already.
        """
        first = self._ahead or self._queue.get()
        self._ahead = None
        if first is None:
            return []
        waiting, answered = [first], first.answered
        while len(waiting) < _MOST:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)
                break
            if answered and isinstance(more.operation, Call):
                self._ahead = more
                break
            waiting.append(more)
            answered = answered or more.answered
        return waiting

    def _transact(self, connection: Connection, operations: Sequence[Operation]) -> list[Any]:
        with contextlib.suppress(queue.Empty):
            while True:
                self._doubtful.append(self._unwanted.get_nowait())
        doubtful = [
            Release(each, note="its admission was not acknowledged", forget=True)
            for each in self._doubtful
        ]
        with connection.begin():
            batch = Batch(connection, self.known)
            results = batch.run([*doubtful, *operations])
        self.known = batch.known
        self._doubtful.clear()
        self.batches += 1
        self.operations += len(operations)
        return results[len(doubtful) :]

    def _one_by_one(self, waiting: Sequence[_Waiting]) -> None:
        """After a failure that one operation may have caused: others must not fail with it."""
        for at, each in enumerate(waiting):
            try:
                connection = self.engine.connect()
            except SQLAlchemyError as error:  # the database is gone: no use asking again
                rest = waiting[at:]
                self._doubt(rest)
                self._resolve(rest, [_failed(error)] * len(rest))
                return
            result: Any
            try:
                (result,) = self._transact(connection, [each.operation])
            except SQLAlchemyError as error:
                self._doubt([each])
                result = _failed(error)
            except Exception as error:  # an OutlayError of a `Call`, or a mistake of ours
                result = error
            finally:
                with contextlib.suppress(SQLAlchemyError):
                    connection.close()
            self._resolve([each], [result])

    def _doubt(self, waiting: Sequence[_Waiting]) -> None:
        """A commit whose answer was lost may have happened: those admissions are taken back."""
        self._doubtful += [
            each.operation.ask.id for each in waiting if isinstance(each.operation, Admit)
        ]

    def _resolve(self, waiting: Sequence[_Waiting], results: Sequence[Any]) -> None:
        """Hand results over, one wake-up a loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for each, result in zip(waiting, results, strict=True):
            by_loop.setdefault(each.loop, []).append((each.future, result))
        for loop, pairs in by_loop.items():
            with contextlib.suppress(RuntimeError):  # its loop has closed: nobody waits
                loop.call_soon_threadsafe(self._hand_over, pairs)

    def _hand_over(self, pairs: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
        for future, result in pairs:
            if future.done():
                self._take_back(result)
            elif isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _take_back(self, result: Any) -> None:
        """Release what was granted to a caller who has gone."""
        if isinstance(result, Grant):
            self._unwanted.put(result.id)
            self.submit(Call(_nothing)).add_done_callback(asyncio.Future.exception)


def _nothing(connection: Connection, now: float) -> None:
    """Wakes the thread."""


def _failed(error: SQLAlchemyError) -> StoreError:
    return StoreError(f"the database failed ({type(error).__name__}); try again later")
