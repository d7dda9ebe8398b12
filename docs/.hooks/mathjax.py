"""Formulas: MathJax is one file of a Python package, which becomes a file of the site, so that no page needs a network.

The file (2 MB) is no part of the repository; `site.js` loads it on pages that have formulas.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

SCRIPT = "static/mathjax/es5/tex-svg.js"
"""TeX to SVG with all its glyphs, so that it fetches no fonts."""


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """The files of the site with MathJax among its assets."""
    package = find_spec("mathjax")
    path = Path(str(package.origin)).parent / SCRIPT if package else None
    if path is None or not path.is_file():
        raise PluginError("Formulas need the package that brings MathJax: pip install '.[docs]'.")
    files.append(File.generated(config, "assets/mathjax.js", abs_src_path=str(path)))
    return files
