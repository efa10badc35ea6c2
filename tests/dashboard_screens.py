"""Pictures of every page, narrow and wide, of the tests' plant: `python -m tests.dashboard_screens docs/images`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.dashboard_plant import PASSWORD, dashboard_plant
from tests.servers.chromium import chromium, served, watched

SIZES = (("wide", 1440, 900, False), ("narrow", 390, 844, False), ("dark", 1440, 900, True))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        dashboard_plant(Path(scratch)) as plant,
        served(plant.app) as address,
        chromium() as browser,
    ):
        alert = plant.alert_of("pump-01").id
        pages = {
            "fleet": "/",
            "asset": "/assets/pump-01",
            "alerts": "/alerts",
            "alert": f"/alerts/{alert}",
            "letters": "/letters",
            "late": "/assets/motor-02",
        }
        for size, width, height, dark in SIZES:
            with watched(browser, address, width=width, height=height, dark=dark) as seen:
                page = seen.page
                page.goto("/login")
                page.screenshot(path=folder / f"login-{size}.png")
                page.fill("#name", "ann")
                page.fill("#password", PASSWORD)
                page.click("button.strong")
                for name, path in pages.items():
                    page.goto(path)
                    for place in page.locator("[data-figure]").all():
                        place.locator("svg.main-svg").first.wait_for()
                    page.screenshot(path=folder / f"{name}-{size}.png", full_page=True)
                if seen.complaints:
                    raise SystemExit(f"{size}: {seen.complaints}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
