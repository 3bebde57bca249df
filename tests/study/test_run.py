"""A run is a training of ``sb3-trl train``, alone or beside other seeds."""

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import VecNormalize
from support import event_file, vec_env

from .cases import load, table


@pytest.mark.parametrize("method", [0, 1, 2])
def test_a_run_is_what_train_does(run, undisturbed, tmp_path, method):
    own = undisturbed.plan.groups[method].runs[1]
    params = own.hyperparameters
    words = [f"{key}:{params[key]}" for key in undisturbed.plan.description.methods[method].params]
    conf_file = "--conf-file ppo_paper.yml " if own.algorithm == "ppo" else ""
    line = (
        f"train --algo {own.algorithm} {conf_file}--env Pendulum-v1 -n 512 --eval-freq 256 --eval-episodes 2 --seed 1"
    )
    assert run(f"{line} --device cpu --tensorboard-log runs -params {' '.join(words)}")[0] == 0
    logs = tmp_path / "logs" / own.algorithm / "Pendulum-v1_1"

    rows = undisturbed.results().query("variant == @own.variant and seed == 1").set_index("step")
    evaluations = np.load(logs / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == rows.index.tolist()
    assert np.allclose(rows.eval_return, evaluations["results"].mean(1), rtol=1e-7)
    assert np.allclose(rows.eval_return_std, evaluations["results"].std(1), rtol=1e-6)

    folder = undisturbed.store.path(own)
    algorithm = ALGOS[own.algorithm]
    ours, theirs = (algorithm.load(path, device="cpu") for path in (folder / "model.zip", logs / "Pendulum-v1.zip"))
    assert ours.num_timesteps == theirs.num_timesteps == 512
    for name, tensor in theirs.policy.state_dict().items():
        assert th.equal(ours.policy.state_dict()[name], tensor), name
    paths = (folder / "vecnormalize.pkl", logs / "Pendulum-v1" / "vecnormalize.pkl")
    ours, theirs = (VecNormalize.load(path, vec_env(cls=lambda: gym.make("Pendulum-v1"))) for path in paths)
    assert np.array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)

    (events,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    check_against_the_log(rows, event_file(events))


def check_against_the_log(rows: pd.DataFrame, events) -> None:
    """Every row holds the moments of what TensorBoard shows since the row before."""
    start = 0
    for step, row in rows.iterrows():

        def logged(key: str, first: int = start, last: int = step) -> list[float]:
            if key not in events.Tags()["scalars"]:
                return []
            return [event.value for event in events.Scalars(key) if first < event.step <= last]

        kl = logged("trust_region/kl_mean")
        assert len(kl) >= 1
        assert row.kl_mean == pytest.approx(np.mean(kl), rel=1e-5)
        assert row.kl_spread == pytest.approx(np.std(kl), rel=1e-3, abs=1e-9)
        assert row.kl_max == pytest.approx(max(logged("trust_region/kl_max")), rel=1e-5)
        for column in ("bounded_kl_max", "rollbacks"):
            values = logged(f"fixpo/{column.removeprefix('bounded_')}")
            assert row[column] == pytest.approx(max(values), rel=1e-5) if values else np.isnan(row[column])
        assert row.entropy == pytest.approx(np.mean(logged("trust_region/entropy")), rel=1e-5)
        for column, key in {"beta": "fixpo/beta", "fixup_share": "fixpo/fixup_share", "std": "train/std"}.items():
            values = logged(key)
            assert row[column] == pytest.approx(np.mean(values), rel=1e-5) if values else np.isnan(row[column])
        start = step


def test_seeds_side_by_side_have_the_rows_of_seeds_alone(undisturbed, tmp_path):
    """Within rounding, over the few updates of this study."""
    study = load(tmp_path)
    assert [len(job.runs) for job in study.jobs(seed_batch=True)] == [2, 1, 1, 2]
    assert study.run(jobs=1, seed_batch=True) == []
    together, alone = study.results(), undisturbed.results()
    numbers = together.select_dtypes("number").columns.drop("seconds")
    assert np.allclose(together[numbers], alone[numbers], rtol=2e-2, atol=1e-5, equal_nan=True)
    for run in study.runs[:2]:
        ours, theirs = (
            ALGOS[run.algorithm].load(s.store.path(run) / "model.zip", device="cpu") for s in (study, undisturbed)
        )
        for name, tensor in theirs.policy.state_dict().items():
            assert th.allclose(ours.policy.state_dict()[name], tensor, rtol=1e-3, atol=1e-4), name

    rows = table(study.store.folder)
    study.store.remove([*study.runs[:2], study.runs[5]])  # as if it had been killed before these batches ended
    assert [len(job.runs) for job in study.jobs(seed_batch=True)] == [2, 1]
    assert study.run(jobs=1, seed_batch=True) == []
    assert table(study.store.folder) == rows, "digit by digit: the same seeds again, and one without that beside it"


@pytest.mark.parametrize("algo", ["recurrent_trpl", "recurrent_fixpo", "lean_recurrent_ppo", "ppo_lstm"])
def test_policies_with_a_memory(load, tmp_path, algo):
    """Their divergence is in the table, whoever measures it."""
    (tmp_path / "own.yml").write_text(
        "default: {policy: MlpLstmPolicy, n_timesteps: 64, n_steps: 16, n_envs: 2, batch_size: 16, n_epochs: 1}"
    )
    method = f"{{algo: {algo}, conf_file: own.yml}}"
    study = load(f"tasks: [Pendulum-v1]\nseeds: 1\neval_freq: 32\nn_eval_episodes: 1\nmethods: {{A: {method}}}\n")
    assert study.run(jobs=1) == []
    assert (study.results().kl_mean.iloc[1:] > 0).all()
