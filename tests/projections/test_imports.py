"""The mathematics stands on PyTorch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_trl.projections

FOLDER = Path(sb3_trl.projections.__file__).parent
FORBIDDEN = ("stable_baselines3", "sb3_contrib", "gymnasium", "rl_zoo3")
ALLOWED = {"torch", "sb3_trl.projections"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/*.py")), ids=lambda path: path.name)
def test_imports_are_torch_and_the_standard_library(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports in this package are absolute"
            imported.add(node.module)
    others = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    for name in others:
        assert any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED), name


def test_works_where_stable_baselines3_is_not_installed():
    program = f"""
import sys
for name in {FORBIDDEN}:
    sys.modules[name] = None
import torch
from sb3_trl.projections import *
old = Gaussian(torch.zeros(4, 2), std=torch.ones(2))
new = Gaussian(torch.ones(4, 2), std=2 * torch.ones(2))
for projection in (KLProjection(), WassersteinProjection(), FrobeniusProjection(), JointKLProjection()):
    layer = TrustRegionLayer(projection, EntropySchedule())
    projected = layer(new, old, entropy_bound=layer.entropy_bound(old, 0.5))
    assert projection.distance(projected, old)[0].max() < 0.1
old, new = (Categorical.from_logits(torch.randn(4, 3)) for _ in range(2))
layer = TrustRegionLayer(KLProjection(), EntropySchedule())
assert layer(new, old, entropy_bound=layer.entropy_bound(old, 0.5)).log_probs.isfinite().all()
assert "torch._dynamo" not in sys.modules, "torch.compile takes a second to import"
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_documented():
    for name in sb3_trl.projections.__all__:
        assert getattr(sb3_trl.projections, name).__doc__, name
