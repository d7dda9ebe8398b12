"""A page as a headless browser shows it, without a driver: a frame of the width in question reports what it holds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<pre id="found"></pre>
<iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  for (const each of page.querySelectorAll("details")) each.open = true;
  const inner = element => element.closest(".wide") && !element.matches(".wide");
  const beyond = element => !inner(element) && element.getBoundingClientRect().right > {width} + 1;
  const wide = [...page.body.querySelectorAll("*")].filter(beyond);
  document.querySelector("#found").textContent = JSON.stringify({{
    title: page.title,
    images: [...page.images].map(image => image.naturalWidth),
    drawings: [...page.querySelectorAll("svg")].map(svg => Math.round(svg.getBoundingClientRect().width)),
    width: root.scrollWidth,
    beyond: wide.map(e => e.tagName + " " + e.className),
    smallest: Math.min(...[...page.querySelectorAll("p, td, th, li, pre, figcaption")]
      .filter(e => e.offsetParent).map(e => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize))),
    paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    ink: frame.contentWindow.getComputedStyle(page.body).color,
  }});
}};
</script>"""
"""Files may read each other in this browser, so that the frame's page can be looked into."""


@dataclass(frozen=True)
class Seen:
    """What a page looks like."""

    title: str
    images: list[int]
    """Width of each picture in its own pixels; 0 for one that is broken."""
    drawings: list[int]
    """Width of each SVG on the page."""
    width: int
    """Of all that can be scrolled to."""
    beyond: list[str]
    """Elements that stand out on the right."""
    smallest: float
    """Size of the smallest type, in pixels."""
    paper: str
    ink: str
    console: list[str]
    """What was written to the console: errors, warnings, and all else."""


def find_browser() -> str | None:
    """The path of a Chromium on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def look(browser: str, page: Path, scratch: Path, *, width: int, dark: bool = False) -> Seen:
    """Opens a page in a frame so many pixels wide, its details unfolded."""
    frame = scratch / f"frame-{page.stem}-{width}-{dark}.html"
    frame.write_text(FRAME.format(page=page.resolve().as_uri(), width=width), encoding="utf-8")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={scratch / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=10000",
            f"--window-size={max(width, 500)},1000", "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    if found is None or not found[1]:
        raise AssertionError(f"the browser did not show the page: {done.stderr[-2000:]}")
    values = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return Seen(**values, console=re.findall(r":CONSOLE[:(].*", done.stderr))
