"""Takes the pictures of docs/gateway-dashboard.md: `python tests/gateway/dashboard_pictures.py`."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

import month
from browsing import browser, log_in
from PIL import Image
from playwright.sync_api import Page
from recording_upstream import upstream
from servers import serving

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images" / "gateway"
TALLEST = 1500
SIZES = {390: 844, 1280: 800}
KEPT = ("overview", "keys", "budgets", "requests", "frontier", "login")
"""What is committed; `all` takes the others too."""


def main(folder: Path, *, everything: bool) -> None:
    """Take them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as place,
        upstream() as recorder,
        serving(Path(place), recorder.url) as gateway,
        browser() as chromium,
    ):
        gateway.call(month.fill)
        for width, height in SIZES.items():
            for scheme in ("light", "dark"):
                context = chromium.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=scheme,  # type: ignore[arg-type]
                    reduced_motion="reduce",
                )
                page = context.new_page()

                def shoot(name: str, page: Page = page, end: str = f"{width}-{scheme}") -> None:
                    if everything or name in KEPT:
                        _save(page.screenshot(full_page=True), folder / f"{name}-{end}.png")

                page.goto(f"{gateway.url}/login")
                shoot("login")
                log_in(page, gateway.url, gateway.token)
                shoot("overview")
                for name in ("requests", "flight", "keys", "budgets", "alerts", "frontiers"):
                    page.goto(f"{gateway.url}/{name}")
                    shoot(name)
                page.goto(f"{gateway.url}/frontiers")
                form = page.locator("details.form")
                if form.get_attribute("open") is None:
                    form.locator("summary").click()
                page.get_by_label("Or the JSON itself").fill(json.dumps(month.comparison()))
                page.get_by_role("button", name="Import").click()
                page.get_by_role("heading", name="repo-qa").wait_for()
                page.goto(page.url.partition("?")[0])
                shoot("frontier")
                page.goto(f"{gateway.url}/requests?route=batch&kind=settled")
                page.locator("tbody th a").first.click()
                page.get_by_role("heading", name="Attempts").wait_for()
                shoot("request")
                context.close()


def _save(picture: bytes, path: Path) -> None:
    """The upper part, in 128 colours: a quarter of the bytes, and no difference to be seen."""
    with Image.open(io.BytesIO(picture)) as image:
        upper = image.convert("RGB").crop((0, 0, image.width, min(image.height, TALLEST)))
        upper.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]) if given else FOLDER, everything=bool(given))
