"""The program of docs/deploy.md runs where there is nothing but NumPy and onnxruntime."""

import re
import subprocess
import sys

import pytest
from support import ROOT

from sb3_trl.deployment.formats import FORMATS

PAGE = (ROOT / "docs" / "deploy.md").read_text()
#: Imports of anything that is not NumPy, onnxruntime or Python's own fail.
ALONE = """
import sys
class Alone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "stable_baselines3", "gymnasium", "sb3_trl", "onnx", "onnxscript"):
            raise ImportError(name)
sys.meta_path.insert(0, Alone())
"""


@pytest.mark.parametrize("name", ["diagonal", "multi_binary"])
def test_the_program(exported, tmp_path, name):
    (block,) = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    (tmp_path / "policy.onnx").write_bytes(exported(name).policy.path.read_bytes())
    command = [sys.executable, "-c", ALONE + block]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("TRPL {'sb3_trl'")


def test_the_formats():
    table = PAGE[PAGE.index("| `format`") :].split("\n\n")[0]
    assert {f'"{name}"' for name in FORMATS} <= set(re.findall(r"`(\"\w+\")`", table))
    assert {known.suffix for known in FORMATS.values()} <= set(re.findall(r"`(\.\w+)`", table))


def test_the_keys_of_the_metadata(exported):
    table = PAGE[PAGE.index("## Metadata") :].split("\n\n")[2]
    named = {key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == exported("diagonal").policy.metadata.keys()
