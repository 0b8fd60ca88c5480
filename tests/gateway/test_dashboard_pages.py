"""The dashboard over HTTP: what its pages show, and frontiers."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import month
import pytest
from recording_upstream import Running
from servers import Serving, serving
from sqlalchemy import Connection, func, insert, select
from visiting import PLACES, inside, rows

from outlay.gateway.dashboard.frontiers import LARGEST
from outlay.gateway.dashboard.reading import Reader
from outlay.gateway.store import admin, schema
from outlay.gateway.store.books import Ask, Charge, Grant
from outlay.gateway.store.store import StoreError
from outlay.gateway.windows import Window
from outlay.ledger import Ledger

pytestmark = pytest.mark.server


# -- what is shown ------------------------------------------------------------------------------


def test_a_request_is_shown_with_its_attempts_and_its_stacks_ledger(gateway: Serving) -> None:
    key, price = gateway.key("stacker").key, gateway.gateway.config.models["plain"].price
    store = gateway.gateway.store
    stack = Ledger()
    stack.record("prompt", "scorer", prompt_new=4321, method="longcodezip")
    stack.record("think", "target", generated=77, forced=3, branch="b", method="m1")
    stack.deliver(["b"])
    for attempt, charge in (
        (1, Charge(full=True, status=502, note="the upstream hung up")),
        (2, Charge(prompt=5, output=80, stages=json.dumps(stack.to_dict()))),
    ):
        ask = Ask(
            f"r{attempt}", key, "plain", "default", "chat", "recorder", 1000, 100, request="req_9",
            attempt=attempt, price=price,
        )  # fmt: skip
        assert isinstance(gateway.wait(store.admit(ask)), Grant)
        if attempt == 2:
            assert "not settled yet" in inside(gateway).get("/requests/req_9").text
        gateway.wait(store.settle(ask.id, charge))
    visitor = inside(gateway)
    text = visitor.get("/requests/req_9").text
    assert "the upstream hung up" in text
    assert "4\u202f321" in text
    assert "longcodezip" in text
    stages = dict(re.findall(r'class="l">(prompt|think)</th><td>([^<]+)<', visitor.get("/").text))
    assert set(stages) == {"prompt", "think"}


def test_an_overrun_suspends_is_shown_and_can_be_lifted(gateway: Serving) -> None:
    made = gateway.key("greedy")
    assert gateway.chat(made.token, "greedy", max_tokens=8).status_code == 200
    assert gateway.chat(made.token, "greedy", max_tokens=8).status_code == 503
    visitor = inside(gateway)
    assert "recorder used" in visitor.get("/alerts").text
    assert "upstream suspended" in visitor.get("/").text
    owner = inside(gateway, gateway.tokens["ada"]).get("/alerts").text
    assert "greedy" in owner
    assert "req_" not in owner  # another owner's request
    assert visitor.post("/alerts/lift", upstream="recorder", model="greedy").status_code == 303
    assert gateway.chat(made.token, "greedy", max_tokens=8).status_code == 200


def test_filters_and_pages_walk_through_the_ledger(gateway: Serving) -> None:
    visitor = inside(gateway)
    wanted = [r for r in rows(gateway, schema.ledger) if r.kind == "unknown"]
    path, seen = "/requests?kind=unknown", 0
    while path:
        text = visitor.get(path).text
        seen += len(re.findall(r'id="row-\d+"', text))
        assert 'kind settled"' not in text
        older = re.search(r'href="(/requests\?before=[^"]+)"', text)
        path = older[1].replace("&amp;", "&") if older else ""
    assert seen == len(wanted)
    for odd in ("before=x", "before=" + "9" * 40, "kind=%00", "request=%27%3B--"):
        assert visitor.get(f"/requests?{odd}").status_code == 200


def test_the_pages_read_the_same_on_postgresql(
    recorder: Running, database: str, tmp_path: Path
) -> None:
    with serving(tmp_path, recorder.url, database=database) as gateway:
        gateway.call(month.fill)
        visitor = inside(gateway)

        def whole(connection: Connection, now: float) -> int:
            table, half = schema.ledger, 43_200
            since = (now - 59 * half) // half * half
            query = select(func.sum(table.c.prompt + table.c.output)).where(
                table.c.kind.in_(("settled", "unknown")), table.c.at >= since
            )
            return int(connection.execute(query).scalar_one())

        shown = re.search(r'id="tokens" title="([^"]+)"', visitor.get("/?range=month").text)
        assert shown is not None
        assert int(shown[1].replace("\u202f", "")) == gateway.call(whole)
        for path in PLACES:
            assert visitor.get(path).status_code == 200


def test_the_dashboards_connections_cannot_write(gateway: Serving) -> None:
    reader = Reader(gateway.gateway.store)
    row = {"digest": "d", "key_id": "k", "csrf": "c", "expires_at": 0.0}
    with pytest.raises(StoreError, match="cannot be read"):
        gateway.wait(reader.run(lambda c, now: c.execute(insert(schema.sessions), row)))


def test_refused_requests_are_counted_for_their_owner(gateway: Serving) -> None:
    made = gateway.key("over", role="owner", owner="over")
    budget = gateway.call(
        partial(admin.create_budget, actor="t"),
        name="none", unit="tokens", amount=0, window=Window("month"), key_id=made.key.id,
    )  # fmt: skip
    for _ in range(3):
        assert gateway.chat(made.token).status_code == 429
    visitor = inside(gateway, made.token)
    until = time.monotonic() + 60
    while ">3</dd>" not in (page := visitor.get("/?range=hour").text):
        assert time.monotonic() < until, page
        time.sleep(0.2)
    assert re.search(r"budget exhausted until it renews</th><td>3<", page)
    gateway.call(partial(admin.archive_budget, actor="t"), identity=budget.id)


# -- frontiers ----------------------------------------------------------------------------------


def test_a_comparison_is_imported_drawn_and_deleted(gateway: Serving) -> None:
    visitor = inside(gateway, gateway.tokens["ada"])
    file = {"file": ("c.json", json.dumps(month.comparison()).encode(), "application/json")}
    answer = visitor.client.post("/frontiers/import", data={"csrf": visitor.csrf}, files=file)
    place = answer.headers["location"].partition("?")[0]
    page = visitor.get(place).text
    assert page.count('class="mark"') == 24
    assert "longcodezip+m1" in page
    assert "generated and forced tokens per example" in page
    assert inside(gateway).get(place).status_code == 200  # an admin sees all
    other = gateway.key("other owner", role="owner", owner="support")
    stranger = inside(gateway, other.token)
    assert stranger.get(place).status_code == 404
    identity = place.rpartition("/")[2]
    assert stranger.post("/frontiers/delete", frontier=identity).status_code == 400
    assert visitor.post("/frontiers/delete", frontier=identity).status_code == 303
    assert visitor.get(place).status_code == 404


def _broken(**changes: Any) -> str:
    data = month_of_points()
    data["points"][0].update(changes)
    return json.dumps(data)


def month_of_points() -> dict[str, Any]:
    point = {
        "stack": "full",
        "budget": {"tokens": 64},
        "quality": 0.5,
        "n": 3,
        "tokens": 10.0,
        "axis": "generated",
        "cost": 5.0,
    }
    return {"title": "t", "points": [point, {**point, "cost": 7.0}]}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "choose a file"),
        ("{", "not JSON"),
        ("[]", "not a comparison"),
        ('{"title": "t", "points": []}', "points"),
        (_broken(quality=float("nan")), "not JSON"),
        (_broken(quality=1e300), "quality"),
        (_broken(cost=-1), "cost"),
        (_broken(axis="beauty"), "axis"),
        (_broken(budget={"tokens": -5}), "a budget that cannot be"),
        (_broken(budget={"colour": 5}), "a budget that cannot be"),
        (_broken(budget={"stages": 5}), "a budget that cannot be"),
        (_broken(budget={"tokens": "x", "counts": []}), "a budget that cannot be"),
        ("[" * 50_000, "not JSON"),
    ],
)
def test_what_is_no_comparison_is_refused(gateway: Serving, given: str, says: str) -> None:
    visitor = inside(gateway)
    answer = visitor.post("/frontiers/import", json=given)
    assert answer.status_code == 400
    assert says in answer.text
    assert visitor.post("/frontiers/import", json=json.dumps(month_of_points())).status_code == 303


def test_a_comparison_that_is_too_large_is_refused(gateway: Serving) -> None:
    visitor = inside(gateway)
    file = {"file": ("c.json", b" " * (LARGEST + 1), "application/json")}
    answer = visitor.client.post("/frontiers/import", data={"csrf": visitor.csrf}, files=file)
    assert answer.status_code == 400
    assert "has more than" in answer.text
    file = {"file": ("c.json", b" " * (LARGEST + 100_000), "application/json")}
    answer = visitor.client.post("/frontiers/import", data={"csrf": visitor.csrf}, files=file)
    assert answer.status_code == 413


def test_only_so_many_comparisons_are_kept(
    gateway: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outlay.gateway.dashboard.frontiers.MOST", 0)
    answer = inside(gateway).post("/frontiers/import", json=json.dumps(month_of_points()))
    assert answer.status_code == 400
    assert "delete one first" in answer.text
