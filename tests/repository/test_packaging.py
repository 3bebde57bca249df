"""The wheel holds what the package needs at run time."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT

import sb3_trl

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("build", "hatchling")), reason="build is not installed"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
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
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "sb3-trl = sb3_trl.cli:main" in wheel.read(name).decode()


def test_the_settings_are_found_in_an_installed_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "from sb3_trl.zoo import hyperparameter_file; print(hyperparameter_file('trpl'))"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(printed) == tmp_path / "sb3_trl" / "hyperparams" / "trpl.yml"
