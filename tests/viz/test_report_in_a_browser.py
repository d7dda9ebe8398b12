"""The page of ``trajgen report`` in a real browser: an empty console, all pictures, no sideways scrolling."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import make_run, write_evaluation, write_metrics

from trajgen.experiments.reporting import write_report
from trajgen.viz.figure import new_figure

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)")

FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0"><pre id="report"></pre>
<iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, style = element => frame.contentWindow.getComputedStyle(element);
  const all = selector => [...page.querySelectorAll(selector)], right = e => e.getBoundingClientRect().right;
  all("details").forEach(each => each.open = true);
  const wide = all("body *").filter(e => right(e) > {width} + 1 && (e.matches(".wide") || !e.closest(".wide")));
  const sum = color => color.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b);
  document.querySelector("#report").textContent = JSON.stringify({{
    title: page.title,
    images: [...page.images].map(image => image.naturalWidth),
    drawings: all("svg").map(svg => Math.round(svg.getBoundingClientRect().width)),
    width: page.documentElement.scrollWidth,
    beyond: wide.map(e => e.tagName + " " + e.className),
    smallest: Math.min(...all("p, td, th, li, pre, figcaption").filter(e => e.offsetParent)
      .map(e => parseFloat(style(e).fontSize))),
    dark: sum(style(page.body).backgroundColor) < sum(style(page.body).color),
  }});
}};
</script>"""
FAULTY = """<!DOCTYPE html><title>Faulty</title><meta http-equiv="Content-Security-Policy" content="img-src data:">
<img src="data:image/png;base64,AAAA"><img src="https://127.0.0.1:9/x.png"><div style="width:900px">wide</div>
<script>console.error("planted")</script>"""


def look(page: Path, width: int, dark: bool = False) -> Any:
    """Opens a page in a frame so many pixels wide, which reports what it shows, without a driver of the browser.

    Returns:
        ``title``; ``images`` and ``drawings``, their widths (0 for a broken one); ``width`` that can be scrolled to;
        elements ``beyond`` the right edge; the ``smallest`` type in pixels; ``dark``; and lines of the ``console``.
    """
    frame = page.with_name(f"frame-{page.stem}-{width}-{dark}.html")
    frame.write_text(FRAME.format(page=page.resolve().as_uri(), width=width), encoding="utf-8")
    words = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={page.with_name('profile')}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=10000",
        f"--window-size={max(width, 500)},1000", "--dump-dom", frame.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    report = re.search(r'<pre id="report">(.+?)</pre>', result.stdout, re.DOTALL)
    assert report is not None, f"the browser did not show the page: {result.stderr[-2000:]}"
    console = re.findall(r":CONSOLE[:(].*", result.stderr)
    return SimpleNamespace(**json.loads(html.unescape(report[1])), console=console)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three runs with long names, long values, and pictures wide and narrow."""
    parent, folders = tmp_path_factory.mktemp("runs"), []
    for number, recipe in enumerate(("mage", "bc", "mage")):
        name = f"{recipe}-with_a_name_that_is_longer_than_a_telephone_is_wide-{number}"
        folder = make_run(parent / name, recipe, seed=number)
        write_metrics(folder, "tokenizer", "prior", scale=1.0 + number)
        write_evaluation(folder, [100.0 * number + i for i in range(6)], protocol="a-word-without-a-break" * 9)
        for name, width in (("plan_episode_0", 9.0), ("control", 4.0)):
            with new_figure(width, 3.0, folder / "plots" / f"{name}.png") as figure:
                figure.subplots().plot([0, 1])
        folders.append(folder)
    write_report(parent / "report.html", folders)
    return parent / "report.html"


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1200, False)])
def test_the_page_is_whole_and_fits(width: int, dark: bool, report: Path) -> None:
    shown = look(report, width, dark)
    assert shown.title == "Runs compared" and shown.console == [] and shown.dark == dark
    assert len(shown.images) == 6 and min(shown.images) > 0
    assert len(shown.drawings) == 3 + 4 and min(shown.drawings) > 100  # intervals, and learning curves
    assert shown.beyond == [] and shown.width <= width and shown.smallest >= 12


def test_faults_are_found(tmp_path: Path) -> None:
    """The look itself can fail: broken pictures, a wide element and an error are found."""
    (tmp_path / "faulty.html").write_text(FAULTY)
    shown = look(tmp_path / "faulty.html", 360)
    assert shown.images == [0, 0] and shown.width >= 900 and "DIV " in shown.beyond
    assert any("planted" in line for line in shown.console) and len(shown.console) >= 2


def test_planted_scripts_do_not_run(report: Path) -> None:
    """Were one to get through the escaping, the page's own policy would stop it."""
    planted = report.with_name("planted.html")
    script = "<script>document.title = 'taken'</script></body>"
    planted.write_text(report.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
    shown = look(planted, 360)
    assert shown.title == "Runs compared" and any("Content Security Policy" in line for line in shown.console)
