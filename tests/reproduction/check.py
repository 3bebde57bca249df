"""What `sb3-trl reproduce all --scale smoke` leaves: every method has its row of numbers, every picture its lines.

python tests/reproduction/check.py reproduction/smoke
"""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.image import imread

from sb3_trl.papers.fixpo import ABLATIONS, COMPARED, MEMORY, TARGETS
from sb3_trl.papers.reproduce import ITEMS
from sb3_trl.papers.trpl import REACHER, TABLE_1, WEIGHTS

#: Rows that the first table of a page must have; the pages of other figures have none.
ROWS = {
    "trpl-table1": [name for group in TABLE_1 for name in group],
    "trpl-fig2-left": [*TABLE_1[0], *TABLE_1[1]],
    "trpl-fig2-centre": [f"α = {w.removeprefix('alpha=')}" for w in WEIGHTS[:-1]] + ["full regression (α = 0)"],
    "trpl-fig2-right": REACHER,
    "trpl-fig4": [*TABLE_1[0], "PAPI", "PPO"],
    "trpl-fig5": [*TABLE_1[2], "PAPI", "PPO"],
    "fixpo-fig1": [f"C_β = {target}" for target in TARGETS.values()],
    "fixpo-fig2": ["C_β = 3", "C_β = 1"],
    "fixpo-fig3": COMPARED,
    "fixpo-fig4": ["FixPO", "PPO-clip"],
    "fixpo-fig5": ABLATIONS.values(),
    "fixpo-fig6": ["MetaWorldDrawerClose-v0", "MetaWorldPickPlace-v0", "mean of all tasks", "hours of a run"],
    "fixpo-fig7": ["DrawerClose", "PickPlace", "mean of all tasks"],
    "fixpo-fig8": MEMORY,
}

#: What follows the name of a method in those of fixpo-fig7.
TRANSFER = (" fine-tuned", " back from DrawerClose", " back from PickPlace")


def main() -> None:
    out = Path(sys.argv[1])
    for name in ITEMS:
        check_picture(out / f"{name}.png")
        check_page(name, (out / f"{name}.md").read_text())
    check_trpl(pd.read_csv(out / "studies" / "trpl_mujoco" / "results.csv"))
    check_reacher(pd.read_csv(out / "studies" / "trpl_reacher" / "results.csv"))
    check_fixpo(pd.read_csv(out / "studies" / "fixpo_mujoco" / "results.csv"))
    check_memory(pd.read_csv(out / "studies" / "fixpo_memory" / "results.csv"))
    check_metaworld(pd.read_csv(out / "studies" / "fixpo_metaworld" / "results.csv"))
    print(f"{len(ITEMS)} tables and figures have what they should have")


def check_picture(path: Path) -> None:
    picture = imread(path)[..., :3]
    assert picture.shape[1] > 900, path
    assert picture.shape[0] > 450, path
    colours = np.unique((picture * 7).round().reshape(-1, 3), axis=0)
    assert len(colours) > 12, f"{path} has {len(colours)} colours"
    edge = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)])
    assert (edge > 0.9).mean() > 0.97, f"{path}: something leaves the picture"


def check_page(name: str, text: str) -> None:
    assert f"sb3-trl reproduce {name} --scale smoke" in text
    if name not in ROWS:
        return
    assert "2 seeds" in text or name == "fixpo-fig2"
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", text, re.MULTILINE)[::-1])  # of several tables, the first
    for row in ROWS[name]:
        numbers = [cell.strip(" *") for cell in rows[row].split("|")]
        values = [float(cell.split(" ")[0].strip("*")) for cell in numbers]
        assert np.isfinite(values).all(), (name, row)


def check_trpl(results: pd.DataFrame) -> None:
    """The projections differ, and keep the mean KL near their bounds, whatever the seed."""
    kl = results.groupby("variant").kl_mean.mean()
    assert kl[["FROB", "W2", "KL", "KL-E"]].round(12).is_unique
    assert (kl > 0).all()
    assert (kl[["FROB", "W2", "KL"]] < 0.06).all()


def check_reacher(results: pd.DataFrame) -> None:
    """Covariances that depend on the state make another policy, for PPO too."""
    final = results[results.step == results.step.max()].groupby("variant").eval_return.mean()
    for name in ("KL", "W2", "FROB", "PPO", "PPO-M"):
        assert final[name] != final[f"{name}-C"]


def check_fixpo(results: pd.DataFrame) -> None:
    """More fixup steps the smaller C_β; without a fixup phase none; with one, no state is outside the bound."""
    share = results.groupby("variant").fixup_share.mean()
    assert share["C_beta=1"] > share["FixPO"] >= share["C_beta=10"]
    assert share["no fixup"] == 0
    bounded = results[results.variant.isin(["FixPO", "C_beta=1", "C_beta=2", "C_beta=10", "last epoch only"])]
    assert bounded.violation_fraction.max() == 0


def check_memory(results: pd.DataFrame) -> None:
    """With FixPO no step of any episode is outside the bound."""
    assert results[results.variant == "FixPO"].violation_fraction.max() == 0


def check_metaworld(results: pd.DataFrame) -> None:
    """Every method has its rows, and each has a success, of training as of evaluations."""
    transfer = {f"{name}{stage}" for name in ("FixPO", "PPO") for stage in TRANSFER}
    assert set(results.variant) == {"FixPO", "TRPL-KL", "PPO", *transfer}
    successes = results[["train_success", "eval_success"]]
    assert ((successes >= 0) & (successes <= 1)).all(axis=None)
    assert results[results.variant.str.startswith("FixPO")].violation_fraction.max() == 0


if __name__ == "__main__":
    main()
