"""The dashboard over HTTP: who gets in, what they may change, what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import httpx
import month
import pytest
from recording_upstream import Running
from servers import Serving, serving
from sqlalchemy import Connection, update
from visiting import PLACES, Visitor, inside, rows

from outlay.gateway.dashboard.sessions import Attempts
from outlay.gateway.store import schema

pytestmark = pytest.mark.server
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


# -- getting in ---------------------------------------------------------------------------------


def test_whoever_has_not_logged_in_sees_the_login_form_alone(gateway: Serving) -> None:
    visitor = Visitor(gateway)
    for path in (*PLACES, "/requests/req_1", "/frontiers/1"):
        assert visitor.get(path).headers["location"] == "/login"
    assert visitor.get("/live/overview").status_code == 401
    assert visitor.client.post("/keys/create", data={"name": "x"}).headers["location"] == "/login"


def test_the_cookie_is_random_strict_and_stored_as_a_hash(gateway: Serving) -> None:
    visitor = Visitor(gateway)
    cookie = visitor.log_in(gateway.token).headers["set-cookie"]
    token = visitor.client.cookies["outlay_session"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    stored = [row.digest for row in rows(gateway, schema.sessions)]
    assert hashlib.sha256(token.encode()).hexdigest() in stored
    assert token not in str(rows(gateway, schema.sessions))
    assert gateway.token not in token


def test_the_cookie_is_for_tls_alone_where_the_operator_says_so(
    recorder: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAY_SERVER__COOKIE_SECURE", "true")
    with serving(tmp_path, recorder.url) as gateway:
        cookie = httpx.get(f"{gateway.url}/login").headers["set-cookie"]
        assert cookie.startswith("__Host-outlay_login=")
        assert "; Secure" in cookie


@pytest.mark.parametrize("given", ["", "nonsense", "olk_" + "0" * 16 + "_" + "a" * 43, "é" * 60])
def test_what_is_no_key_does_not_get_in(gateway: Serving, given: str) -> None:
    answer = Visitor(gateway).log_in(given)
    assert answer.status_code == 401
    assert "that is no valid key" in answer.text
    assert "outlay_session" not in answer.headers["set-cookie"]


def test_a_callers_key_does_not_get_in(gateway: Serving) -> None:
    answer = Visitor(gateway).log_in(gateway.tokens["search"])
    assert answer.status_code == 403
    assert "does not get in here" in answer.text


def test_a_session_is_over_once_its_owner_logs_out(gateway: Serving) -> None:
    visitor = inside(gateway)
    kept = dict(visitor.client.cookies)
    assert visitor.post("/logout").headers["location"] == "/login"
    again = httpx.get(f"{gateway.url}/", cookies=kept)
    assert again.headers["location"] == "/login"


def test_a_session_is_over_once_its_key_is_revoked(gateway: Serving) -> None:
    made = gateway.key("short-lived", role="admin")
    visitor = inside(gateway, made.token)
    assert visitor.get("/").status_code == 200
    inside(gateway).post("/keys/revoke", key=made.key.id)
    assert visitor.get("/").headers["location"] == "/login"


def test_a_session_is_over_when_it_expires(gateway: Serving) -> None:
    visitor = inside(gateway)
    digest = hashlib.sha256(visitor.client.cookies["outlay_session"].encode()).hexdigest()
    table = schema.sessions

    def age(connection: Connection, now: float) -> None:
        where = table.c.digest == digest
        connection.execute(update(table).where(where).values(expires_at=now - 1))

    gateway.call(age)
    assert visitor.get("/").headers["location"] == "/login"
    inside(gateway)  # the next login clears it away
    assert digest not in [row.digest for row in rows(gateway, table)]


def test_logins_are_limited_and_one_address_does_not_lock_out_others(
    recorder: Running, tmp_path: Path
) -> None:
    with serving(tmp_path, recorder.url) as gateway:
        visitor = Visitor(gateway)
        answers = [visitor.log_in("wrong") for _ in range(11)]
        assert [a.status_code for a in answers] == [401] * 10 + [429]
        assert 0 < int(answers[-1].headers["retry-after"]) <= 61
        assert visitor.log_in(gateway.token).status_code == 429
    attempts = Attempts(each=10, all=25)
    assert sum(attempts.wait("10.0.0.1", 0.0) == 0 for _ in range(1000)) == 10
    assert attempts.wait("10.0.0.2", 1.0) == 0
    taken = sum(attempts.wait(f"10.0.1.{i}", 2.0) == 0 for i in range(100))
    assert taken == 25 - 11
    assert attempts.wait("10.0.0.3", 3.0) == pytest.approx(57)
    assert attempts.wait("10.0.0.1", 60.0) == 0


def test_addresses_of_one_ipv6_network_share_their_limit() -> None:
    attempts = Attempts(each=3)
    waits = [attempts.wait(f"2001:db8::{i}", 0.0) for i in range(4)]
    assert [wait > 0 for wait in waits] == [False, False, False, True]
    assert attempts.wait("2001:db8:0:1::1", 0.0) == 0


def test_counting_tries_takes_bounded_memory() -> None:
    attempts = Attempts()
    for second in range(20_000):
        attempts.wait(f"host-{second}", second / 10)
    assert len(attempts._by_address) <= 4 * attempts.all + 1


# -- forms that are ours ------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "x" * 43])
def test_a_form_without_the_sessions_token_changes_nothing(
    gateway: Serving, token: str | None
) -> None:
    visitor = inside(gateway)
    fields = {"other": "x"} if token is None else {"csrf": token}
    before = len(rows(gateway, schema.keys))
    answer = visitor.client.post("/keys/create", data={"name": "forged", **fields})
    assert answer.status_code == 403
    assert visitor.client.post("/logout", data=fields).status_code == 403
    assert len(rows(gateway, schema.keys)) == before
    other = inside(gateway)
    answer = visitor.client.post("/keys/create", data={"name": "forged", "csrf": other.csrf})
    assert answer.status_code == 403
    assert visitor.get("/keys").status_code == 200


def test_what_another_site_sends_is_refused(gateway: Serving) -> None:
    visitor = inside(gateway)
    for site in ("cross-site", "same-site"):
        answer = visitor.client.post(
            "/keys/create",
            data={"name": "forged", "csrf": visitor.csrf},
            headers={"sec-fetch-site": site},
        )
        assert answer.status_code == 403


def test_a_login_form_that_is_not_ours_is_refused(gateway: Serving) -> None:
    answer = httpx.post(f"{gateway.url}/login", data={"key": gateway.token, "csrf": "x" * 43})
    assert answer.status_code == 403


def test_the_moving_part_of_a_page_needs_the_token_too(gateway: Serving) -> None:
    visitor = inside(gateway)
    assert visitor.get("/live/overview").status_code == 403
    answer = visitor.client.get("/live/overview", headers={"x-csrf-token": visitor.csrf})
    assert "Budgets" in answer.json()["html"]
    answer = visitor.client.get("/live/nothing", headers={"x-csrf-token": visitor.csrf})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("application/x-www-form-urlencoded", b"a=%ff", 400),
        ("application/x-www-form-urlencoded", b"\xff", 400),
        ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 200), 400),
        ("application/x-www-form-urlencoded", b"a=" + b"x" * 70_000, 413),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n", 403),
        ("multipart/form-data; boundary=b; charset=\xe9", b"--b\r\n\r\nx\r\n--b--", 403),
    ],
)
def test_what_is_no_form_is_refused(gateway: Serving, media: str, body: bytes, status: int) -> None:
    visitor = inside(gateway)
    headers = {"content-type": media.encode("latin-1")}
    answer = visitor.client.post("/keys/create", content=body, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == status


def test_every_answer_bears_the_policy(gateway: Serving) -> None:
    visitor = inside(gateway)
    sheet = re.search(r'href="(/static/[^"]+)"', visitor.get("/").text)
    assert sheet is not None
    answers = [
        *(visitor.get(path) for path in (*PLACES, "/login", "/requests/none", sheet[1])),
        Visitor(gateway).get("/"),
        visitor.client.post("/keys/create", data={}),
        visitor.client.get("/live/keys", headers={"x-csrf-token": visitor.csrf}),
    ]
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert visitor.get("/").headers["cache-control"] == "no-store"


def test_static_files_are_kept_under_their_hash(gateway: Serving) -> None:
    page = Visitor(gateway).get("/login").text
    sheet = re.search(r'href="(/static/dashboard\.css\?v=[0-9a-f]{16})"', page)
    assert sheet is not None
    answer = httpx.get(gateway.url + sheet[1])
    assert "immutable" in answer.headers["cache-control"]
    same = {"if-none-match": answer.headers["etag"]}
    assert httpx.get(gateway.url + sheet[1], headers=same).status_code == 304
    stale = httpx.get(f"{gateway.url}/static/dashboard.css?v=0")
    assert stale.headers["cache-control"] == "no-cache"
    for name in ("nothing.css", "..%2froutes.py", "routes.py"):
        assert httpx.get(f"{gateway.url}/static/{name}").status_code == 404


# -- who may do what ----------------------------------------------------------------------------


def test_an_owner_sees_no_row_of_another_owner(gateway: Serving) -> None:
    visitor = inside(gateway, gateway.tokens["ada"])
    header = {"x-csrf-token": visitor.csrf}
    spans = ("/?range=month&by=key", "/?range=month&by=owner", "/requests?owner=support")
    foreign = ("support", "search", "wallboard", "bootstrap", "company, monthly", "prototype")
    for path in (*PLACES, *spans):
        name, _, query = path.removeprefix("/").partition("?")
        live = visitor.client.get(f"/live/{name or 'overview'}?{query}", headers=header)
        for text in (visitor.get(path).text, live.json()["html"]):
            seen = re.sub(r"<[^>]*>", " ", text)
            assert [w for w in foreign if re.search(rf"\b{w}\b", seen)] == [], path
    overview = visitor.get("/?range=month&by=key").text
    assert "nightly-eval" in overview
    assert "research grant" not in overview  # a team's, which others may share
    theirs = next(row for row in rows(gateway, schema.ledger) if row.owner == "support")
    assert visitor.get(f"/requests/{theirs.request}").status_code == 404
    mine = next(row for row in rows(gateway, schema.ledger) if row.owner == "research")
    assert visitor.get(f"/requests/{mine.request}").status_code == 200


def test_an_owner_manages_its_own_keys_and_no_others(gateway: Serving) -> None:
    visitor = inside(gateway, gateway.tokens["ada"])
    made = visitor.post("/keys/create", name="of ada", role="caller", owner="support")
    assert made.status_code == 403
    for role in ("admin", "viewer"):
        assert visitor.post("/keys/create", name="of ada", role=role).status_code == 403
    assert visitor.post("/keys/create", name="of ada", role="caller").status_code == 200
    key = next(row for row in rows(gateway, schema.keys) if row.name == "of ada")
    assert (key.owner, key.team) == ("research", "research")
    assert visitor.post("/keys/revoke", key=key.id).status_code == 303
    viewer = gateway.key("sees all", role="viewer", owner="research")
    for other in ("search", "wallboard"):
        theirs = next(row for row in rows(gateway, schema.keys) if row.name == other)
        for action in ("revoke", "rotate"):
            assert visitor.post(f"/keys/{action}", key=theirs.id).status_code == 404
    for action in ("revoke", "rotate"):
        assert visitor.post(f"/keys/{action}", key=viewer.key.id).status_code == 403
    left = {row.name for row in rows(gateway, schema.keys) if row.revoked_at is None}
    assert {"search", "wallboard", "sees all"} <= left


def test_budgets_and_suspensions_are_for_admins(gateway: Serving) -> None:
    budget = rows(gateway, schema.budgets)[0]
    before = [tuple(row) for row in rows(gateway, schema.budgets)]
    for name in ("ada", "wallboard"):
        visitor = inside(gateway, gateway.tokens[name])
        fields = {"unit": "tokens", "amount": "1", "window": "total", "name": "n"}
        answers = [
            visitor.post("/budgets/create", **fields),
            visitor.post("/budgets/change", budget=budget.id, unit="tokens", amount="1"),
            visitor.post("/budgets/archive", budget=budget.id),
            visitor.post("/alerts/lift", upstream="local-vllm", model="qwen3-32b"),
        ]
        assert [answer.status_code for answer in answers] == [403] * 4
    assert [tuple(row) for row in rows(gateway, schema.budgets)] == before
    assert len(rows(gateway, schema.suspensions)) == 1


def test_a_viewer_sees_all_and_changes_nothing(gateway: Serving) -> None:
    visitor = inside(gateway, gateway.tokens["wallboard"])
    assert "company, monthly" in visitor.get("/").text
    key = next(row for row in rows(gateway, schema.keys) if row.name == "search")
    answers = [
        visitor.post("/keys/create", name="n", role="caller"),
        visitor.post("/keys/rotate", key=key.id),
        visitor.post("/keys/revoke", key=key.id),
        visitor.post("/frontiers/import", json=json.dumps(month.comparison())),
        visitor.post("/frontiers/delete", frontier="x"),
    ]
    assert [answer.status_code for answer in answers] == [403] * 5
    assert "Create a key" not in visitor.get("/keys").text


def test_an_admin_changes_budgets_and_the_audit_log_says_so(gateway: Serving) -> None:
    visitor = inside(gateway)
    fields = {"name": "quarter", "unit": "nanousd", "amount": "$12.50", "window": "rolling"}
    answer = visitor.post("/budgets/create", **fields, hours="1.5", model="nothing", mode="shrink")
    assert answer.headers["location"] == "/budgets?done=budget"
    made = next(row for row in rows(gateway, schema.budgets) if row.name == "quarter")
    assert (made.amount, made.seconds, made.model) == (12_500_000_000, 5400, "nothing")
    assert (made.owner, made.mode) == (None, "shrink")
    assert "in any 1.5 h" in visitor.get("/budgets").text
    visitor.post("/budgets/change", budget=made.id, unit="nanousd", amount="0.25")
    visitor.post("/budgets/archive", budget=made.id)
    visitor.post("/alerts/lift", upstream="local-vllm", model="qwen3-32b")
    assert "quarter" not in re.sub(r"<[^>]*>", " ", visitor.get("/budgets").text)
    audit = [(row.action, json.loads(row.detail)) for row in rows(gateway, schema.audit)[-4:]]
    assert [action for action, _ in audit] == [
        "create budget",
        "change budget",
        "archive budget",
        "lift suspension",
    ]
    assert audit[1][1] == {"from": 12_500_000_000, "to": 250_000_000}
    assert "lift suspension" in visitor.get("/alerts").text


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("/keys/create", {"name": ""}, "needs a name"),
        ("/keys/create", {"name": "n", "role": "king"}, "role"),
        ("/keys/create", {"name": "n", "days": "soon"}, "days until the key expires"),
        ("/keys/rotate", {"grace": "-1"}, "hours that the old key still works"),
        ("/keys/rotate", {"grace": "9000"}, "between 0 and 30 days"),
        ("/budgets/create", {"amount": "many"}, "no number of tokens"),
        ("/budgets/create", {"amount": "9" * 16}, "between 0 and"),
        ("/budgets/create", {"unit": "nanousd", "amount": "NaN"}, "no amount of money"),
        ("/budgets/create", {"unit": "nanousd", "amount": "x"}, "no amount of dollars"),
        ("/budgets/create", {"unit": "nanousd", "amount": "0.0000000001"}, "nano-dollars"),
        ("/budgets/create", {"window": "rolling", "hours": "inf"}, "no number of hours"),
        ("/budgets/create", {"window": "rolling", "hours": "nan"}, "no number of hours"),
        ("/budgets/create", {"window": "rolling", "hours": "0"}, "between 60 and"),
        ("/budgets/create", {"window": "day", "zone": "Mars/Base"}, "time zone"),
        ("/budgets/create", {"window": "never"}, "window"),
        ("/budgets/create", {"key_id": "none"}, "no key has the id"),
        ("/budgets/change", {"budget": "none"}, "no budget has the id"),
        ("/alerts/lift", {"upstream": "u", "model": "m"}, "is not suspended"),
        ("/frontiers/delete", {"frontier": "x"}, "no such frontier"),
    ],
)
def test_a_mistake_in_a_form_is_said_on_its_page_and_changes_nothing(
    gateway: Serving, path: str, fields: dict[str, str], says: str
) -> None:
    key = next(row for row in rows(gateway, schema.keys) if row.name == "search")
    base = {"key": key.id} if "rotate" in path else {}
    if path.startswith("/budgets"):
        base = {"name": "kept & shown", "unit": "tokens", "amount": "5", "window": "month"}
    before = len(rows(gateway, schema.audit))
    answer = inside(gateway).post(path, **{**base, **fields})
    assert answer.status_code == 400
    said = re.search(r'role="alert">([^<]*)<', answer.text)
    assert said is not None
    assert says in said[1]
    assert len(rows(gateway, schema.audit)) == before
    if path == "/budgets/create":
        assert 'value="kept &amp; shown"' in answer.text


def test_a_rotated_key_is_shown_once_and_takes_over(gateway: Serving) -> None:
    made = gateway.key("rotating")
    page = inside(gateway).post("/keys/rotate", key=made.key.id, grace="0").text
    token = re.search(r"olk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", page)
    assert token is not None
    assert gateway.chat(token[0]).status_code == 200
    assert gateway.chat(made.token).status_code == 401


def test_names_are_text_and_never_markup(gateway: Serving) -> None:
    visitor = inside(gateway)
    name = "<script>alert(1)</script>\"'><img src=x>"
    assert visitor.post("/keys/create", name=name, role="caller").status_code == 200
    for path in ("/keys", "/alerts", "/requests", "/budgets"):
        text = visitor.get(path).text
        assert "<script>alert" not in text
        assert "<img" not in text
        assert "&lt;script&gt;alert(1)" in text
    key = next(row for row in rows(gateway, schema.keys) if row.name == name)
    visitor.post("/keys/revoke", key=key.id)
