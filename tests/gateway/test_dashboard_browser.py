"""The dashboard in headless Chromium, in front of a real gateway and a recording upstream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import month
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import browser, log_in
from playwright.sync_api import Browser, Page, expect
from recording_upstream import Running
from servers import Serving, serving

pytestmark = pytest.mark.server
PLACES = ("/", "/requests?kind=unknown", "/flight", "/keys", "/budgets", "/alerts", "/frontiers")
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def gateway(recorder: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A gateway with a month behind it."""
    with serving(tmp_path_factory.mktemp("gateway"), recorder.url) as found:
        found.tokens = found.call(month.fill, steps=400)
        yield found


@contextmanager
def visit(chromium: Browser, **knobs: Any) -> Iterator[tuple[Page, list[str]]]:
    """A page, and everything that its console complained about."""
    context = chromium.new_context(**knobs)
    context.set_default_timeout(60_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        yield page, complaints
    finally:
        context.close()


def test_a_key_is_made_spends_in_sight_without_a_reload_and_is_refused_once_revoked(
    chromium: Browser, recorder: Running, tmp_path: Path
) -> None:
    with (
        serving(tmp_path, recorder.url) as gateway,
        visit(chromium, viewport={"width": 1280, "height": 800}) as (page, complaints),
    ):
        log_in(page, gateway.url, gateway.token)
        page.goto(f"{gateway.url}/keys")
        page.get_by_text("Create a key").click()
        page.get_by_label("Name", exact=True).fill("made here")
        page.get_by_role("button", name="Create the key").click()
        token = page.locator("#token").inner_text()
        assert re.fullmatch(r"olk_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", token)
        page.goto(f"{gateway.url}/keys")
        expect(page.locator("tbody th", has_text="made here")).to_be_visible()
        assert token not in page.content()

        page.goto(f"{gateway.url}/budgets")
        page.get_by_text("Create a budget").click()
        page.get_by_label("Name", exact=True).fill("small")
        page.get_by_label("Limit", exact=True).fill("10 000")
        page.get_by_role("button", name="Create the budget").click()
        expect(page.get_by_role("status")).to_have_text("The budget is in force.")

        page.goto(gateway.url)
        page.evaluate("window.notReloaded = true")
        expect(page.locator("#tokens")).to_have_text("0")
        used = page.locator(".balance rect.used")
        before = float(used.get_attribute("width") or "nan")
        assert gateway.chat(token, max_tokens=996).status_code == 200
        assert recorder.rows[-1]["output"] == 996
        expect(page.locator("#tokens")).to_have_text("1\u202f000")
        expect(page.locator("#money")).not_to_have_text("$0")
        expect(used).to_have_attribute("width", "100.0")
        assert before == 0
        assert page.evaluate("window.notReloaded") is True

        page.goto(f"{gateway.url}/keys")
        row = page.locator("tr", has=page.locator("th", has_text="made here"))
        row.locator("summary", has_text="Revoke").click()
        row.get_by_role("button", name="Revoke made here").click()
        expect(page.get_by_role("status")).to_contain_text("refused from the next request on")
        refused = gateway.chat(token, max_tokens=4)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert complaints == []


def test_every_page_fits_its_width_and_is_accessible_by_day_and_by_night(
    chromium: Browser, gateway: Serving
) -> None:
    with visit(chromium) as (page, complaints):
        page.goto(f"{gateway.url}/login")
        _check(page)
        log_in(page, gateway.url, gateway.token)
        page.goto(f"{gateway.url}/requests?route=batch&kind=settled")
        stacked = page.locator("tbody th a").first.get_attribute("href") or ""
        for place in (*PLACES, stacked, _frontier(page, gateway)):
            page.goto(gateway.url + place)
            for closed in page.locator("details:not(.menu)").all():
                closed.evaluate("each => { each.open = true }")
            _check(page)
        assert complaints == []


def _frontier(page: Page, gateway: Serving) -> str:
    """Import a comparison by its file."""
    page.goto(f"{gateway.url}/frontiers")
    page.locator("details.form").evaluate("each => { each.open = true }")
    content = json.dumps(month.comparison()).encode()
    file = {"name": "c.json", "mimeType": "application/json", "buffer": content}
    page.get_by_label("JSON file").set_input_files(file)  # type: ignore[arg-type]
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("heading", name="repo-qa")).to_be_visible()
    assert page.locator("svg.chart .mark").count() == 24
    return page.url.removeprefix(gateway.url).partition("?")[0]


def _check(page: Page) -> None:
    """No sideways scrolling in any look; axe in the two that have both widths and schemes."""
    for width, scheme in ((390, "light"), (390, "dark"), (1280, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        assert not wide, f"{page.url} scrolls sideways at {width}"
        if (width, scheme) in ((390, "dark"), (1280, "light")):
            bad = [
                (each["id"], [node["html"][:120] for node in each["nodes"]])
                for each in Axe().run(page).response["violations"]
                if each["impact"] in ("serious", "critical")
            ]
            assert bad == [], f"{page.url} at {width}, {scheme}"


def test_what_somebody_types_and_opens_stays_while_the_page_moves(
    chromium: Browser, gateway: Serving
) -> None:
    with visit(chromium, viewport={"width": 1280, "height": 800}) as (page, complaints):
        log_in(page, gateway.url, gateway.token)
        page.goto(f"{gateway.url}/keys")
        row = page.locator("tr", has=page.locator("th", has_text="bootstrap"))
        row.locator("summary", has_text="Rotate").click()
        field = row.get_by_label("Hours that the old key still works")
        field.fill("24")
        spent = row.locator("td[data-label='tokens, 30 days']")
        before = spent.inner_text()
        assert gateway.chat(gateway.token, max_tokens=9).status_code == 200
        expect(spent).not_to_have_text(before)
        expect(field).to_have_value("24")
        expect(field).to_be_focused()
        assert complaints == []


def test_a_page_says_when_it_is_no_longer_live(chromium: Browser, gateway: Serving) -> None:
    with visit(chromium) as (page, _):
        log_in(page, gateway.url, gateway.token)
        expect(page.locator("#pulse")).to_have_text("live")
        page.route("**/live/**", lambda route: route.abort())
        expect(page.locator("#pulse")).to_contain_text("not live")
        page.unroute("**/live/**")
        expect(page.locator("#pulse")).to_have_text("live")


def test_it_works_without_javascript(chromium: Browser, gateway: Serving) -> None:
    with visit(chromium, java_script_enabled=False) as (page, _):
        log_in(page, gateway.url, gateway.token)
        page.goto(f"{gateway.url}/keys")
        page.get_by_text("Create a key").click()
        page.get_by_label("Name", exact=True).fill("no script")
        page.get_by_role("button", name="Create the key").click()
        assert gateway.chat(page.locator("#token").inner_text()).status_code == 200
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("API key")).to_be_visible()
