"""The table of a study's results: its columns, and what each algorithm fills."""

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from support import PointEnv

from sb3_trl import __version__
from sb3_trl.study.rows import COLUMNS


def test_columns(undisturbed):
    rows = pd.read_csv(undisturbed.store.results)
    assert tuple(rows.columns) == COLUMNS
    assert set(rows.study) == {"small"}
    assert (rows.sb3_trl == __version__).all()
    (torch,) = set(rows.torch)
    assert torch in (th.__version__, th.__version__.partition("+")[0])  # PyPI's builds for a GPU do not say which
    assert (rows.gymnasium == gym.__version__).all()
    keys = rows[["algorithm", "variant", "task", "seed", "step"]].itertuples(index=False, name=None)
    methods = [("trpl", "TRPL, small steps"), ("ppo", "PPO"), ("fixpo", "FixPO")]
    steps = (256, 512)
    expected = [(*method, "Pendulum-v1", seed, step) for method in methods for seed in (0, 1) for step in steps]
    assert list(keys) == expected
    pd.testing.assert_frame_equal(undisturbed.results(), rows)


def test_what_each_algorithm_logs(undisturbed):
    rows = undisturbed.results().set_index("algorithm")
    always = ["eval_return", "eval_return_std", "kl_mean", "kl_spread", "kl_max", "entropy", "std", "seconds"]
    assert rows[always].notna().all(axis=None)
    assert rows.loc[["ppo"], "train_return"].notna().all()
    filled = {name: set(own.columns[own.notna().all()]) for name, own in rows.groupby(level=0)}
    guarantee = {"bounded_kl_max", "rollbacks"}
    own = {
        "mean_distance",
        "cov_distance",
        "violation_fraction",
        "projected_fraction",
        "beta",
        "fixup_share",
        *guarantee,
    }
    assert filled["ppo"] & own == set()
    assert filled["trpl"] & own == own - {"beta", "fixup_share", *guarantee}
    assert filled["fixpo"] & own == {"violation_fraction", "beta", "fixup_share", *guarantee}
    assert (rows.loc["fixpo"].bounded_kl_max <= 0.5).all()
    assert (rows.kl_max >= rows.kl_mean).all()
    assert (rows.kl_spread > 0).sum() > len(rows) / 2
    assert (rows.loc["trpl"].projected_fraction > 0).any()
    assert (rows.loc["fixpo"].fixup_share > 0).any()
    assert (rows.eval_return < 0).all()
    assert rows.seconds.between(0, 600).all()


class SuccessEnv(PointEnv):
    """Every third episode is a success; what an episode is told before its end does not count."""

    n_episodes = 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.n_episodes += truncated
        is_success = self.n_episodes % 3 == 0 if truncated else True
        return observation, reward, terminated, truncated, info | {"is_success": is_success}


@pytest.fixture
def successes():
    gym.register("SuccessStudy-v0", SuccessEnv)
    yield "SuccessStudy-v0"
    gym.registry.pop("SuccessStudy-v0")


@pytest.mark.parametrize("seed_batch", [False, True])
def test_successes(successes, load, seed_batch):
    """16 episodes, then 32, of training; evaluations of 4 episodes, of which the first has one third."""
    study = load(
        f"tasks: [{successes}]\nseeds: 2\nn_timesteps: 320\neval_freq: 160\nn_eval_episodes: 4\nmethods:\n"
        "  A:\n    algo: trpl\n"
        "    params: {n_envs: 1, n_steps: 160, batch_size: 80, n_epochs: 1, n_critic_epochs: 1}\n"
    )
    assert study.run(jobs=1, seed_batch=seed_batch) == []
    rows = study.results()
    assert rows.eval_success.tolist() == [1 / 4, 1 / 4] * 2  # of 1 to 4: 3; of 5 to 8: 6
    np.testing.assert_allclose(rows.train_success, [5 / 15, 10 / 31] * 2, rtol=1e-6)


def test_tasks_without_successes_have_none(undisturbed):
    assert undisturbed.results()[["eval_success", "train_success"]].isna().all(axis=None)
