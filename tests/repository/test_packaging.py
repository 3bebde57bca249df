"""The wheel holds what the package needs at run time, and its page on PyPI leads into the repository."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from support import ROOT

import sb3_trl

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("build", "hatchling")), reason="build is not installed"
)


PYPROJECT = (ROOT / "pyproject.toml").read_text()
ADDRESS = "https://forge.example/team/sb3_trl"
#: Pictures, links, references and tags whose targets are neither addresses nor anchors.
RELATIVE = re.compile(
    r"\]\((?!https?:|#)[^)]*\)|^\[[^\]]+\]:\s+(?!https?:|#)\S+"
    r"|\b(?:src|href|srcset|poster)\s*=\s*[\"']?(?!https?:|#)[^\"'\s>]+",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    environment = os.environ | {"SB3_TRL_REPOSITORY": ADDRESS}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_every_module_and_file_of_settings(wheel):
    names = set(wheel.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sb3_trl").rglob("*.py")}
    modules |= {str(path.relative_to(ROOT)) for path in (ROOT / "sb3_trl").rglob("*.xml")}
    settings = {f"sb3_trl/hyperparams/{path.name}" for path in (ROOT / "hyperparams").glob("*.yml")}
    assert settings
    assert modules | settings | {"sb3_trl/py.typed"} <= names
    assert all(name.split("/")[0].startswith("sb3_trl") for name in names), "nothing beside the package"


def test_metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
    metadata = wheel.read(name).decode()
    assert f"Version: {sb3_trl.__version__}" in metadata
    assert "Provides-Extra: zoo" in metadata
    assert f"Project-URL: Repository, {ADDRESS}" in metadata
    page = metadata.partition("\n\n")[2]
    assert not RELATIVE.findall(page)
    files = re.findall(rf"{ADDRESS}/(?:blob|raw|tree)/v{re.escape(sb3_trl.__version__)}/([^)#\"\s]+)", page)
    assert len(files) > 10
    assert all((ROOT / file).exists() for file in files)
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "sb3-trl = sb3_trl.cli:main" in wheel.read(name).decode()


def test_the_settings_are_found_in_an_installed_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "from sb3_trl.zoo import hyperparameter_file; print(hyperparameter_file('trpl'))"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(printed) == tmp_path / "sb3_trl" / "hyperparams" / "trpl.yml"


# --- the page on PyPI ---


@pytest.fixture
def hook():
    return runpy.run_path(str(ROOT / "hatch_build.py"))


MARKDOWN = """[page](docs/trpl.md#notes), [code](examples), [`--f`](CITATION.cff), [out](https://a.b/c), [here](#top)
![drawn](docs/img/a.png) and [![badge](docs/b.svg)](docs/c.md) <img width="9" src="docs/d.gif"> <a href="e.md">e</a>
```python
x = table[0](docs) + f["a"](b)
```
[after](CHANGELOG.md)
"""


def test_links_lead_into_the_repository(hook):
    page = hook["absolute"](MARKDOWN, ADDRESS, "v1")
    assert page.splitlines() == [
        f"[page]({ADDRESS}/blob/v1/docs/trpl.md#notes), [code]({ADDRESS}/tree/v1/examples), "
        f"[`--f`]({ADDRESS}/blob/v1/CITATION.cff), [out](https://a.b/c), [here](#top)",
        f"![drawn]({ADDRESS}/raw/v1/docs/img/a.png) and [![badge]({ADDRESS}/raw/v1/docs/b.svg)]"
        f'({ADDRESS}/blob/v1/docs/c.md) <img width="9" src="{ADDRESS}/raw/v1/docs/d.gif"> '
        f'<a href="{ADDRESS}/blob/v1/e.md">e</a>',
        "```python",
        'x = table[0](docs) + f["a"](b)',
        "```",
        f"[after]({ADDRESS}/blob/v1/CHANGELOG.md)",
    ]


def test_without_an_address_nothing_is_broken(hook):
    page = hook["alone"](MARKDOWN)
    assert page.splitlines()[:2] == ["page, code, `--f`, [out](https://a.b/c), [here](#top)", " and   e"]
    assert 'x = table[0](docs) + f["a"](b)' in page
    assert not RELATIVE.findall(hook["alone"]((ROOT / "README.md").read_text()))


def test_an_sdist_keeps_its_page(hook, tmp_path, monkeypatch):
    """A wheel that pip builds from an sdist, where nobody names an address, is the one that was published."""
    monkeypatch.setenv("SB3_TRL_REPOSITORY", ADDRESS)
    (tmp_path / "PKG-INFO").write_text("")
    metadata = {"version": "1"}
    hook["RepositoryHook"](str(tmp_path), {}).update(metadata)
    assert metadata == {"version": "1"}


def test_an_address_is_one(hook, monkeypatch):
    monkeypatch.setenv("SB3_TRL_REPOSITORY", "team/sb3_trl")
    with pytest.raises(ValueError, match="must begin with https://"):
        hook["RepositoryHook"](str(ROOT), {}).update({"version": "1"})


@pytest.mark.parametrize("link", ["[a](b.md)", "![a](b.png)", "[a]: b.md", "<img src='b.png'>", '<a href="b.md">'])
def test_what_would_lead_nowhere_is_found(link):
    assert len(RELATIVE.findall(f"Text\n{link}\n")) == 1


def test_an_sdist_has_every_page_of_the_root():
    (include,) = re.findall(r"^\[tool\.hatch\.build\.targets\.sdist\]\ninclude = \[(.*?)^\]", PYPROJECT, re.M | re.S)
    pages = [path.name for path in ROOT.glob("*.md")]
    assert len(pages) > 4
    assert [page for page in pages if f'"{page}"' not in include] == []


def test_the_version_to_cite():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sb3_trl.__version__


def test_workflows_try_the_versions_that_are_promised():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    tried = {entry["python"] for entry in workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]} | {"3.11"}
    promised = re.findall(r"Python :: (3\.\d+)", PYPROJECT)
    assert tried == set(promised)


def test_workflows_call_what_there_is():
    makefile = (ROOT / "Makefile").read_text()
    text = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    targets = re.findall(r"\brun: make (\w+)", text)
    assert {"subset", "docs", "smoke"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    (subset,) = re.findall(r"^SUBSET := \$\(addprefix tests/,((?:.|\\\n)+?)\)$", makefile, re.MULTILINE)
    paths = subset.replace("\\\n", " ").split()
    assert len(paths) > 4
    assert all((ROOT / "tests" / path).is_file() for path in paths)
