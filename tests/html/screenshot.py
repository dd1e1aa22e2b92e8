"""Makes docs/page.png again: the page of the sample round. `python -m tests.html.screenshot`."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image

import clair_cli
from clair_cli.html.page import html_page
from tests.html.chromium import Page, start
from tests.pages import ROOT, SAMPLES

PICTURE = ROOT / "docs" / "page.png"
WIDTH, HEIGHT = 1000, 1900


def main() -> None:
    """Open the page and write what chromium shows of it, in 200 colours."""
    os.chdir(SAMPLES)  # the page has the path as given
    report = clair_cli.merge("clients").report
    page = html_page(report, report_path="merged.report.json")  # as docs/pictures.md calls it
    chrome = start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "page.html"
            path.write_text(page, encoding="utf-8")
            Page(chrome, path, WIDTH, "light", height=HEIGHT)
            shown = Image.open(io.BytesIO(chrome.get_screenshot_as_png())).convert("RGB")
    finally:
        chrome.quit()
    shown.quantize(200, Image.Quantize.MAXCOVERAGE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
