"""Every link of a page leads to a file, and to a heading that is there, on the forge and on the site."""

import re
import unicodedata
from pathlib import Path

import pytest
from support import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1`*$|(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\]\(\s*<?([^)\s>]+)")
DEFINED = re.compile(r"^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
TAG = re.compile(r"<\w[^>]*?\s(?:src|href|srcset|poster)=[\"']([^\"']+)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def targets(text: str) -> list[str]:
    """Return where links, pictures and tags of a page lead, without code and without other sites."""
    text = CODE.sub("", text)
    found = [match for kind in (INLINE, DEFINED, TAG) for match in kind.findall(text)]
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def headings(text: str) -> list[str]:
    """Return the text of a page's headings, without markup."""
    found = HEADING.findall(re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return [re.sub(r"[`*]|\]\([^)]*\)|\[|\$", "", heading) for heading in found]


def on_the_forge(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def on_the_site(heading: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


def numbered(slugs: list[str], between: str) -> set[str]:
    """Return the anchors: a heading that a page has twice gets a number."""
    return {slug + (f"{between}{slugs[:i].count(slug)}" if slug in slugs[:i] else "") for i, slug in enumerate(slugs)}


def broken(page: Path, text: str) -> list[str]:
    """Return the links of a page that lead nowhere."""
    bad = []
    for target in targets(text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        inside = DOCS not in page.parents or DOCS in file.resolve().parents
        if not file.exists() or not inside:
            bad.append(target)
        elif anchor and file.suffix == ".md":
            words = headings(text if file == page else file.read_text())
            anchors = numbered([on_the_forge(word) for word in words], "-")
            if DOCS in page.parents:
                anchors &= numbered([on_the_site(word) for word in words], "_")
            if anchor not in anchors:
                bad.append(target)
    return bad


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page, page.read_text()) == []


@pytest.mark.parametrize(
    "link",
    [
        "[a](nowhere.md)",
        "[a](nowhere.md#notes)",
        "[a](trpl.md#no-such-heading)",
        "[a](#no-such-heading)",
        "[`code` and **bold**](nowhere.md)",
        "![a picture](img/nowhere.png)",
        "[![a picture](img/nowhere.png)](trpl.md)",
        "[a][1]\n\n[1]: nowhere.md",
        '<img width="9" src="img/nowhere.png">',
        '<table><tr><td><a href="nowhere.md">a</a></td></tr></table>',
        "[of the site, outside it](../README.md)",
    ],
)
def test_what_leads_nowhere_is_found(link):
    assert len(broken(DOCS / "trpl.md", f"# Title\n\n{link}\n")) == 1


def test_what_leads_somewhere_is_left_alone():
    text = """# Title

## What is `hard`?

## What is `hard`?

[a](#what-is-hard) [c](fixpo.md#many-tasks-one-policy) ![d](img/figure_1.png) [e](https://a.b/c#d) [f](mailto:a@b.c)
`x[0](y)`

```python
x[0](y)
```
"""
    assert broken(DOCS / "trpl.md", text) == []
    assert numbered(["a", "b", "a"], "_") == {"a", "b", "a_1"}
