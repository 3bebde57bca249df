"""Formulas of the site, typeset when it is built: MathML, which browsers draw without a script.

``$…$`` and ``$$…$$`` are LaTeX, found by ``pymdownx.arithmatex`` and translated by ``math-core``; one that is not
understood ends the build. Docstrings and pages also have plain formulas such as ``π_old``, which read well in a
terminal: their indices are lowered. The font, STIX Two Math, comes from the package ``ziamath``, cut down to what
formulas use.
"""

from __future__ import annotations

import html
import io
import logging
import re
from importlib.util import find_spec
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.formulas")

FONT = "fonts/STIXTwoMath.woff2"
#: Latin, Greek and what is combined with them; letterlike signs, arrows, operators, brackets; mathematical letters.
RANGES = [(0x20, 0x17F), (0x2B0, 0x3FF), (0x2000, 0x23FF), (0x27C0, 0x2AFF), (0x1D400, 0x1D7FF)]

MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
#: Where the text is not for people, or has been typeset.
VERBATIM = re.compile(r"(<(code|pre|math|script|style|svg)\b.*?</\2>|<[^>]*>)", re.DOTALL)
#: One letter, with or without a tilde or hat on it, and its index: π_old, Σ_o⁻¹, ε_KL.
INDEXED = re.compile(r"(?<![\w.])((?:KL|[A-Za-zΑ-Ωα-ω])[\u0302\u0303]?)_(old|cov|mean|KL|[a-zθμπΣβ])(?![A-Za-z_])")

_latex = LatexToMathML(fancy_error=False)


def _typeset(match: re.Match[str]) -> str:
    tag, text = match.groups()
    latex = html.unescape(text).strip()[2:-2]
    return _latex.convert_with_local_state(latex, displaystyle=tag == "div")


def _lowered(text: str) -> str:
    pieces = VERBATIM.split(text)
    # Three pieces for each match: the text before it, the match itself, and the name of its element.
    return "".join(
        INDEXED.sub(r"\1<sub>\2</sub>", piece) if i % 3 == 0 else piece for i, piece in enumerate(pieces) if i % 3 != 2
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Typeset the formulas of a page."""
    try:
        return _lowered(MATH.sub(_typeset, html))
    except LatexError as error:
        log.warning("%s: a formula cannot be typeset: %s", page.file.src_uri, error)
        return html


def _font() -> bytes:
    """Return the part of the font that formulas use, with what stretches."""
    options = subset.Options(flavor="woff2", layout_features=["*"], notdef_outline=True)
    package = Path(find_spec("ziamath").origin).parent  # found, not imported: what it draws is not needed
    font = TTFont(package / "fonts" / "STIXTwoMath-Regular.ttf")
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[code for first, last in RANGES for code in range(first, last + 1)])
    subsetter.subset(font)
    font.flavor = "woff2"
    target = io.BytesIO()
    font.save(target)
    return target.getvalue()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the font to the site."""
    files.append(File.generated(config, FONT, content=_font()))
    return files
