"""Every cell of examples/quickstart.ipynb runs, with few steps, in a folder of its own."""

import json
import re

import matplotlib.pyplot as plt
from support import ROOT

from sb3_trl import ExportedPolicy
from sb3_trl.algorithms.base import TrustRegionAlgorithm

PATH = ROOT / "examples" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text())


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def test_the_cells(tmp_path, monkeypatch, capsys):
    learn = TrustRegionAlgorithm.learn

    def two_updates(model, total_timesteps, *args, **kwargs):
        assert 10_000 <= total_timesteps <= 50_000, "a notebook to wait for"
        model.n_epochs = model.n_critic_epochs = 1
        return learn(model, 2 * model.n_steps * model.n_envs, *args, **kwargs)

    monkeypatch.setattr(TrustRegionAlgorithm, "learn", two_updates)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    plt.close("all")
    try:
        for number, cell in enumerate(cells("code")):
            exec(compile(cell, f"cell {number}", "exec"), namespace)
        curves, pictures = (plt.figure(number) for number in plt.get_fignums())
        learning, divergence = curves.axes
        assert [len(line.get_xdata()) for line in (*learning.lines, *divergence.lines)] == [1] * 4
        assert len(pictures.axes) == 12
        first, last = (axis.images[0].get_array() for axis in (pictures.axes[0], pictures.axes[-1]))
        assert (first != last).any(), "it moves"
    finally:
        plt.close("all")
    assert re.search(r"return -\d+ ± \d+", capsys.readouterr().out)
    assert ExportedPolicy(tmp_path / "pendulum.onnx").metadata["algorithm"] == "TRPL"


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", "".join(cells("markdown")))
    assert len(targets) > 4
    for target in targets:
        assert (PATH.parent / target).exists(), target


def test_nothing_of_somebodys_machine_is_in_it():
    text = PATH.read_text()
    assert not re.search(r"/home/|/root/|/Users/|/tmp/|Traceback", text)
