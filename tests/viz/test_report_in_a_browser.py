"""The page of ``trajgen report`` in a real browser: an empty console, all pictures, no sideways scrolling."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Seen, find_browser, look
from run_folders import make_run, write_evaluation, write_metrics

from trajgen.viz.figure import new_figure
from trajgen.viz.report.page import write_report

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt install chromium)")

FAULTY = """<!DOCTYPE html><title>Faulty</title><meta http-equiv="Content-Security-Policy" content="img-src data:">
<img src="data:image/png;base64,AAAA"><img src="https://127.0.0.1:9/x.png"><div style="width:900px">wide</div>
<script>console.error("planted")</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three runs with long names, long values, and pictures wide and narrow."""
    place, folders = tmp_path_factory.mktemp("runs"), []
    for number, recipe in enumerate(("mage", "bc", "mage")):
        name = f"{recipe}-with_a_name_that_is_longer_than_a_telephone_is_wide-{number}"
        folder = make_run(place / name, recipe, seed=number)
        write_metrics(folder, "tokenizer", "prior", scale=1.0 + number)
        write_evaluation(folder, [100.0 * number + i for i in range(6)], protocol="a-word-without-a-break" * 9)
        for name, width in (("plan_episode_0", 9.0), ("control", 4.0)):
            with new_figure(width, 3.0, folder / "plots" / f"{name}.png") as figure:
                figure.subplots().plot([0, 1])
        folders.append(folder)
    write_report(place / "report.html", folders)
    return place / "report.html"


def seen(page: Path, width: int, dark: bool = False) -> Seen:
    assert BROWSER is not None
    return look(BROWSER, page, page.parent, width=width, dark=dark)


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1200, False)])
def test_the_page_is_whole_and_fits(width: int, dark: bool, report: Path) -> None:
    found = seen(report, width, dark)
    assert found.title == "Runs compared" and found.console == []
    assert len(found.images) == 6 and min(found.images) > 0
    assert len(found.drawings) == 3 + 4 and min(found.drawings) > 100  # intervals, and learning curves
    assert found.beyond == [] and found.width <= width
    assert found.smallest >= 12
    assert brightness(found.paper) < brightness(found.ink) if dark else brightness(found.paper) > brightness(found.ink)


def test_faults_are_found(tmp_path: Path) -> None:
    """The look itself can fail: broken pictures, a wide element and an error are seen."""
    (tmp_path / "faulty.html").write_text(FAULTY)
    found = seen(tmp_path / "faulty.html", 360)
    assert found.images == [0, 0] and found.width >= 900 and "DIV " in found.beyond
    assert any("planted" in line for line in found.console) and len(found.console) >= 2


def test_planted_scripts_do_not_run(report: Path) -> None:
    """Were one to get through the escaping, the page's own policy would stop it."""
    planted = report.with_name("planted.html")
    text = report.read_text(encoding="utf-8")
    planted.write_text(text.replace("</body>", "<script>document.title = 'taken'</script></body>"), encoding="utf-8")
    found = seen(planted, 360)
    assert found.title == "Runs compared" and any("Content Security Policy" in line for line in found.console)


def brightness(color: str) -> int:
    """The sum of the parts of "rgb(r, g, b)"."""
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))
