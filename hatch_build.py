"""What PyPI shows of the package: README.md, with links and pictures that lead into the repository, and its address.

On PyPI the links of README.md, which are relative to this folder, would lead nowhere. Where the repository is, is
not written down here, because it can move: whoever builds for publication says so,

    SB3_TRL_REPOSITORY=https://forge.example/team/sb3_trl python -m build

as the release workflow does with the repository that it runs in. Links are to the tag of the version, v1.2.3.
Without an address, links become their text, and pictures are left out: nothing on the page is broken.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "SB3_TRL_REPOSITORY"

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
#: A target that is a file of the repository: no scheme, no anchor of the page itself.
FILE = r"(?![a-z]+:|#|/)([^)\s\"]+)"
PICTURE = re.compile(rf"!\[([^\]]*)\]\({FILE}\)")
LINK = re.compile(rf"(?<!!)\[((?:[^\[\]]|!?\[[^\]]*\](?:\([^)]*\))?)*)\]\({FILE}\)")
TAG_OF_PICTURE = re.compile(rf"<(?:img|source)\b[^>]*?\b(?:src|srcset)=\"{FILE}\"[^>]*>")
TAG_OF_LINK = re.compile(rf"<a\b[^>]*?\bhref=\"{FILE}\"[^>]*>(.*?)</a>", re.DOTALL)


class RepositoryHook(MetadataHookInterface):
    """Fills in ``readme`` and ``urls``."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set them, except in an sdist, whose PKG-INFO has them already."""
        if (Path(self.root) / "PKG-INFO").is_file():
            return
        address = os.environ.get(VARIABLE, "").rstrip("/")
        if address and not address.startswith("https://"):
            raise ValueError(
                f"{VARIABLE}={address!r} must begin with https://, as in https://forge.example/team/sb3_trl"
            )
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        version = metadata["version"] if "version" in metadata else version_of(Path(self.root))
        page = absolute(text, address, f"v{version}") if address else alone(text)
        metadata["readme"] = {"content-type": "text/markdown", "text": page}
        if address:
            metadata["urls"] = {
                "Repository": address,
                "Documentation": f"{address}/tree/v{version}/docs",
                "Changelog": f"{address}/blob/v{version}/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }


def version_of(root: Path) -> str:
    """Return the version that ``sb3_trl/version.py`` states."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', (root / "sb3_trl" / "version.py").read_text(), re.MULTILINE)
    return version


def absolute(text: str, address: str, ref: str) -> str:
    """Let links and pictures lead into a repository.

    :param text: Markdown.
    :param address: Of the repository.
    :param ref: The tag, branch or commit that is shown.
    """

    def link(match: re.Match[str]) -> str:
        kind = "tree" if match[2].endswith("/") or "." not in match[2].rpartition("/")[2] else "blob"
        return f"[{match[1]}]({address}/{kind}/{ref}/{match[2]})"

    def outside_code(part: str) -> str:
        part = TAG_OF_PICTURE.sub(lambda m: m[0].replace(f'"{m[1]}"', f'"{address}/raw/{ref}/{m[1]}"'), part)
        part = TAG_OF_LINK.sub(lambda m: m[0].replace(f'"{m[1]}"', f'"{address}/blob/{ref}/{m[1]}"'), part)
        part = PICTURE.sub(lambda m: f"![{m[1]}]({address}/raw/{ref}/{m[2]})", part)
        return LINK.sub(link, part)

    return _outside_code(text, outside_code)


def alone(text: str) -> str:
    """Leave pictures out, and of links their text.

    :param text: Markdown.
    """

    def outside_code(part: str) -> str:
        part = PICTURE.sub("", TAG_OF_PICTURE.sub("", part))
        return LINK.sub(lambda m: m[1], TAG_OF_LINK.sub(lambda m: m[2], part))

    return _outside_code(text, outside_code)


def _outside_code(text: str, change: Any) -> str:
    parts = FENCED.split(text)
    return "".join(part if part.startswith("```") else change(part) for part in parts)
