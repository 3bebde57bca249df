"""What is not installed is named, with the extra that brings it."""

import subprocess
import sys

import gymnasium as gym
import pytest

from sb3_trl.envs.extras import from_extra

NEEDED = [
    ("sb3_trl/VizdoomBasic-v0", "doom", "vizdoom", "vizdoom"),
    ("sb3_trl/VizdoomBasic-v0", "doom", "cv2", "opencv-python-headless"),
    ("sb3_trl/MiniGridMemoryS7-v0", "grids", "minigrid", "minigrid"),
    ("sb3_trl/POPGymAutoencodeEasy-v0", "cards", "popgym", "popgym"),
    ("sb3_trl/MetaWorldReach-v0", "metaworld", "metaworld", "metaworld"),
    ("sb3_trl/MetaWorldMT10-v0", "metaworld", "metaworld", "metaworld"),
]


class Nowhere:
    """Finds no module of a package, as Python's own finders where it is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def without(monkeypatch):
    """Make a package look as if it were not installed."""

    def hide(module: str, package: str) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, f"sb3_trl.envs.{module}", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Nowhere(package), *sys.meta_path])

    return hide


@pytest.mark.parametrize(("env_id", "module", "package", "distribution"), NEEDED)
def test_a_missing_package_is_named_with_its_extra(env_id, module, package, distribution, without):
    if module == "doom" and package != "cv2":
        pytest.importorskip("cv2", reason="looked for first")
    without(module, package)
    with pytest.raises(ModuleNotFoundError) as caught:
        gym.make(env_id)
    extra = "metaworld" if package == "metaworld" else "pixels"
    assert str(caught.value) == f'This environment needs {distribution}. It comes with pip install "sb3-trl[{extra}]"'
    assert caught.value.name == package


def test_the_command_says_the_same(without, run):
    without("cards", "popgym")
    code, _, error = run("train --algo trpl --env sb3_trl/POPGymAutoencodeEasy-v0 -n 64 --eval-freq -1")
    assert code != 0
    assert error.strip().endswith('This environment needs popgym. It comes with pip install "sb3-trl[pixels]"')


def test_what_a_package_misses_itself_is_not_blamed_on_it(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import not_installed_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'not_installed_at_all'$"):
        from_extra("half_installed")


def test_registration_loads_none_of_them():
    code = (
        "import sys, sb3_trl.envs\n"
        "heavy = {'cv2', 'metaworld', 'minigrid', 'mujoco', 'popgym', 'pygame', 'rl_zoo3', 'torch', 'vizdoom'}\n"
        "loaded = heavy & {*sys.modules}\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
