"""The report in headless Chromium, where there is one: it fits a phone and paper, and runs no script."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

import pytest

from rnnsparse.reporting.compare import group
from rnnsparse.reporting.comparison_folder import write
from rnnsparse.reporting.reading import read_runs
from tests.browser import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# Shows a page at some width, unfolded, and writes into the title what a reader would notice: whether it has to be
# scrolled sideways, and pictures that do not show. A window of its own is never narrower than 500 pixels.
FRAME = """<!DOCTYPE html><title>not loaded</title>
<iframe style="width: {width}px; height: 800px; border: 0" srcdoc="{page}"></iframe>
<script>addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  page.querySelectorAll("details").forEach(details => {{ details.open = true; }});
  const broken = [...page.images].filter(image => !image.naturalWidth).length;
  document.title = [page.documentElement.scrollWidth, page.images.length, broken].join(" ");
}});</script>"""


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    list(write(out, group(read_runs([folder / "runs" / "rigl-a"])[0]), []))
    return out / "report.html"


def browse(page: Path, *options: str) -> str:
    home = page.parent / "browser"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_page_and_every_picture_shows(page: Path, width: int) -> None:
    framed = page.with_name(f"{width}.html")
    text = html.escape(page.read_text(encoding="utf-8"))
    framed.write_text(FRAME.format(width=width, page=text), encoding="utf-8")
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", browse(framed, "--dump-dom"))
    assert found
    content, pictures, broken = map(int, found.groups())
    assert content <= width
    assert pictures > 0
    assert broken == 0


def test_the_report_lets_no_script_run(page: Path) -> None:
    intruder = page.with_name("intruder.html")
    script = '<script>document.title = "script ran"</script></body>'
    intruder.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    assert "<title>script ran" not in browse(intruder, "--dump-dom")


def test_it_can_be_printed(page: Path) -> None:
    paper = page.with_suffix(".pdf")
    browse(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert len(re.findall(rb"/Type */Page\b", paper.read_bytes())) >= 1
