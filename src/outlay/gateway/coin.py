"""CoIn in the gateway: commits to hidden reasoning as it is answered, opens it to who paid for it.

Off unless `[coin]` says `enabled = true`: stored fingerprints can be inverted to text. What is
committed to is the reasoning of whole chat answers and streams with one choice: the text in
`reasoning_content` or `reasoning`, or between `<think>` and `</think>` at the start of the content.
Its tokens are those of the model's tokenizer (`models.<name>.tokenizer`; a local model has its
own). Embedding happens after the answer, in one thread; whoever audits meanwhile is told to wait.
The id on the bill is the answer's `x-request-id`; only the key that made the request may audit it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outlay.audit.coin import CoIn
from outlay.audit.embedding import Embedder, embedder
from outlay.audit.serving import FingerprintStore, provider_routes
from outlay.errors import OutlayError
from outlay.gateway.bounds import load_tokenizer
from outlay.gateway.config import CoinTable, ModelTable
from outlay.gateway.local import Holder
from outlay.gateway.upstream import Server

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import Mount

    from outlay.gateway.state import Gateway

log = logging.getLogger("outlay.gateway")
PATH = "/coin"
_OPEN, _CLOSE = "<think>", "</think>"
_NAMES = ("reasoning_content", "reasoning")
_SHORT, _WORDS = 32, 50_000  # characters of a text whose vector is remembered, and how many

Split = Callable[[str], tuple[str, ...]]
"""A text to the texts of its tokens."""


def reasoning(texts: Mapping[str, str]) -> str:
    """The hidden part of an answer's texts by field; "" without one."""
    for name in _NAMES:
        if texts.get(name, "").strip():
            return texts[name]
    head, found, _ = texts.get("content", "").partition(_CLOSE)
    inside = head.lstrip().removeprefix(_OPEN)
    return inside if found and inside != head.lstrip() and inside.strip() else ""


@dataclass
class Audited:
    """Fingerprints of a worker's finished answers.

    Args:
        table: its configuration.

    Raises:
        InputError: for an embedder, a block size or shares that cannot be.
        DependencyError: without the embedder's packages.
    """

    table: CoinTable
    store: FingerprintStore = field(init=False)

    def __post_init__(self) -> None:
        from outlay.models.encoders import encoder_folder

        table = self.table
        self.store = FingerprintStore(table.ttl, table.max_traces, table.max_tokens)
        self._coin = CoIn(
            block=table.block,
            embedder=table.embedder,
            max_block_exposure=table.max_block_exposure,
            max_token_exposure=table.max_token_exposure,
        )
        self._embed: Embedder = embedder(table.embedder)
        encoder_folder(self._embed.name)
        self._thread = ThreadPoolExecutor(1, "coin")
        self._places = threading.BoundedSemaphore(table.queue)
        self._silent: set[str] = set()

    def keep(
        self,
        name: str,
        owner: str,
        model: str,
        texts: Mapping[str, str],
        table: ModelTable,
        server: Server,
    ) -> None:
        """Commit to the reasoning of a finished answer, soon.

        Args:
            name: id of the answer.
            owner: id of the key that may audit it.
            model: that callers asked for.
            texts: of the answer's only choice, by field.
            table, server: of the model.
        """
        hidden = reasoning(texts)
        if not hidden:
            return
        if not self._places.acquire(blocking=False):
            log.warning("request %s is not committed: too many wait to be embedded", name)
            return
        self.store.announce(owner, name)
        done = self._thread.submit(self._commit, name, model, hidden, table, server)
        done.add_done_callback(lambda _: self._places.release())

    def _commit(
        self, name: str, model: str, hidden: str, table: ModelTable, server: Server
    ) -> None:
        try:
            split = splitter(table, server)
            if split is None:
                self.store.forget(name)
                if model not in self._silent:
                    self._silent.add(model)
                    log.warning(
                        "coin: %s has no tokenizer, so its tokens cannot be committed to; "
                        "give models.%s.tokenizer",
                        model,
                        model,
                    )
                return
            tokens = split(hidden)
            if not 1 <= len(tokens) <= self.table.max_tokens:
                self.store.forget(name)
                log.warning("request %s is not committed: %d hidden tokens", name, len(tokens))
                return
            self.store.put(self._coin.commit(tokens, self._embed), name)
        except OutlayError as error:
            self.store.forget(name)
            log.error("request %s is not committed: %s", name, error)
        except Exception:  # a mistake of ours: the answer itself is long with its caller
            self.store.forget(name)
            log.exception("request %s is not committed", name)
        finally:
            self._remember_words_alone()

    def _remember_words_alone(self) -> None:
        """Blocks are forgotten at once; vectors of single tokens are worth keeping."""
        table = self._embed.table
        for text in [text for text in table if len(text) > _SHORT]:
            del table[text]
        if len(table) > _WORDS:
            table.clear()

    def close(self) -> None:
        """Stop embedding; what waits is not committed."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def splitter(table: ModelTable, server: Server) -> Split | None:
    """What cuts a model's reasoning into tokens; None for a model whose tokens are not known."""
    if table.tokenizer is not None:
        found = load_tokenizer(table.tokenizer)

        def cut(text: str) -> tuple[str, ...]:
            ids = found.encode(text, add_special_tokens=False).ids
            return tuple(found.decode([index], skip_special_tokens=False) for index in ids)

        return cut
    model = server.model() if isinstance(server, Holder) else None
    reader = getattr(model, "tokenizer", None)
    if reader is None:
        return None

    def own(text: str) -> tuple[str, ...]:
        ids = reader(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(reader.batch_decode([[index] for index in ids]))

    return own


def coin_routes(gateway: Gateway) -> list[Mount]:
    """`/coin/commit` and `/coin/open`, for callers with a key; none where audits are off."""
    from starlette.routing import Mount

    if gateway.coin is None:
        return []

    async def owner(request: Request) -> str:
        return (await gateway.key(request.scope)).id

    return [Mount(PATH, routes=provider_routes(gateway.coin.store, owner))]
