"""Lean stepping leaves what SB3's VecNormalize leaves, to the last bit."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import make_model

from sb3_trl.rollouts.normalization import can_normalize, update
from sb3_trl.rollouts.stepping import stepping

BOXES = {
    "float64": spaces.Box(-np.inf, np.inf, (5,), np.float64),
    "float32": spaces.Box(-np.inf, np.inf, (5,), np.float32),
    "matrix": spaces.Box(-np.inf, np.inf, (2, 3), np.float32),
    "scalar": spaces.Box(-np.inf, np.inf, (), np.float32),
    "uint8": spaces.Box(0, 255, (4,), np.uint8),
}
DICT = spaces.Dict({"a": BOXES["float32"], "b": BOXES["float64"]})


class Walk(gym.Env):
    """Numbers of many sizes; episodes end at random, in two ways."""

    def __init__(self, observation_space: spaces.Space, seed: int, broken_at: int | None = None) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1, 1, (2,))
        self.rng = np.random.default_rng(seed)
        self.broken_at = broken_at
        self.t = 0

    def _observe(self, space):
        if isinstance(space, spaces.Dict):
            return {key: self._observe(part) for key, part in space.items()}
        if space.dtype == np.uint8:
            return self.rng.integers(0, 256, space.shape, np.uint8)
        scale = 10.0 ** np.arange(-4, int(np.prod(space.shape)) - 4).reshape(space.shape)
        values = scale * self.rng.normal(1, 1, space.shape) * (np.inf if self.t == self.broken_at else 1)
        return np.asarray(values, space.dtype)

    def reset(self, *, seed=None, options=None):
        return self._observe(self.observation_space), {}

    def step(self, action):
        self.t += 1
        reward = float(self.rng.normal() + action[0]) * (np.inf if self.t == self.broken_at else 1)
        terminated, truncated = (self.rng.random(2) < 0.02).tolist()
        return self._observe(self.observation_space), reward, terminated, truncated, {"plain": reward}


def walks(space: spaces.Space, n_envs: int, broken_at: int | None = None, **kwargs) -> VecNormalize:
    makers = [lambda i=i: Monitor(Walk(space, i, broken_at)) for i in range(n_envs)]
    return VecNormalize(DummyVecEnv(makers), **kwargs)


def same(ours, theirs) -> bool:
    """Equal to the last bit, and of the same types."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours if k != "t")
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, RunningMeanStd):
        return same(vars(ours), vars(theirs))
    if isinstance(ours, (np.ndarray, np.generic)):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
    return ours == theirs or (ours != ours and theirs != theirs)


def state(env: VecNormalize) -> dict:
    """All that a step may change, and all that it may not add."""
    return {key: value for key, value in vars(env).items() if key not in ("venv", "class_attributes")}


def are_same(lean: VecNormalize, usual: VecNormalize, n_steps: int) -> None:
    """Take ``n_steps`` in both."""
    rng = np.random.default_rng(0)
    assert same(lean.reset(), usual.reset())
    step = stepping(lean)
    for _ in range(n_steps):
        actions = rng.uniform(-1, 1, (usual.num_envs, 2)).astype(np.float32)
        assert same(step(actions), usual.step(actions))
        assert same(state(lean), state(usual))


@pytest.mark.parametrize(("n_envs", "n_steps"), [(1, 1000), (2, 700), (8, 400), (64, 150)])
@pytest.mark.parametrize("space", BOXES)
def test_statistics_observations_rewards_and_infos(space, n_envs, n_steps):
    """Bit for bit, in every step, over many episodes."""
    are_same(*(walks(BOXES[space], n_envs, gamma=0.97) for _ in range(2)), n_steps if "float" in space else 150)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"training": False},
        {"norm_obs": False},
        {"norm_reward": False},
        {"norm_obs": False, "norm_reward": False, "training": False},
        {"clip_obs": 0.5, "clip_reward": 1, "epsilon": 0.1},
    ],
)
def test_every_option(n_envs, kwargs):
    are_same(*(walks(BOXES["float32"], n_envs, **kwargs) for _ in range(2)), 300)


@pytest.mark.parametrize("kwargs", [{}, {"norm_obs_keys": ["a"]}, {"norm_obs": False}])
def test_dictionaries_take_the_usual_path(kwargs):
    lean, usual = (walks(DICT, 2, **kwargs) for _ in range(2))
    assert not can_normalize(lean)
    are_same(lean, usual, 300)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_spreads_alike(n_envs):
    are_same(*(walks(BOXES["float32"], n_envs, broken_at=20) for _ in range(2)), 40)


@pytest.mark.parametrize("n_envs", [1, 2, 3, 11])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_means_of_very_small_numbers(n_envs, dtype):
    """Which are rounded otherwise when divided in another precision."""
    rng, tiny = np.random.default_rng(0), 1e-3 * float(np.finfo(dtype).tiny)
    ours, theirs = RunningMeanStd(shape=(50,)), RunningMeanStd(shape=(50,))
    for _ in range(50):
        batch = (tiny * rng.normal(size=(n_envs, 50))).astype(dtype)
        ours.mean, theirs.mean = np.zeros(50), np.zeros(50)
        update(ours, batch)
        theirs.update(batch)
        assert same(ours, theirs)


def test_lean_and_usual_steps_mix_with_saving_and_switches(tmp_path):
    """A wrapper saved in the middle of a rollout is the one that SB3 saves, and goes on as that one."""
    lean, usual = (walks(BOXES["float64"], 2) for _ in range(2))
    zeros = np.zeros((2, 2), np.float32)

    def reloaded(env: VecNormalize) -> VecNormalize:
        env.save(str(tmp_path / "normalize.pkl"))
        return VecNormalize.load(str(tmp_path / "normalize.pkl"), env.venv)

    assert same(lean.reset(), usual.reset())
    for round_ in range(6):
        step = stepping(lean)
        for _ in range(20):
            assert same(step(zeros), usual.step(zeros))
        copies = reloaded(lean), reloaded(usual)
        for env in (lean, usual):  # as a callback might
            env.training, env.norm_reward = round_ % 2 == 0, round_ % 3 != 0
        assert same(step(zeros), usual.step(zeros))
        assert same(lean.step(zeros), usual.step(zeros))
        lean, usual = copies
        assert same(state(lean), state(usual))


@pytest.mark.parametrize("norm_obs", [True, False])
def test_what_others_keep_does_not_change(norm_obs):
    env = walks(BOXES["float64"], 1, norm_obs=norm_obs)
    env.reset()
    step = stepping(env)
    first = step(np.zeros((1, 2)))[0]
    kept = [env.returns, env.old_obs, env.old_reward, first]
    kept += [env.obs_rms.mean, env.obs_rms.var] if norm_obs else []
    copies = [array.copy() for array in kept]
    step(np.zeros((1, 2)))
    assert same(kept, copies)
    assert not np.shares_memory(first, kept[1])


def test_what_others_wrote_is_left_alone():
    class Own(VecNormalize):
        pass

    inner = DummyVecEnv([lambda: Walk(BOXES["float64"], 0)])
    changed = VecNormalize(inner)
    changed.normalize_reward = lambda reward: reward
    assert can_normalize(VecNormalize(inner))
    assert not any(map(can_normalize, (inner, Own(inner), changed)))


def test_a_checkpoint_in_the_middle_of_training():
    """A wrapper pickled by a callback carries nothing of lean stepping."""

    class Save(BaseCallback):
        def _on_step(self) -> bool:
            self.saved = pickle.dumps(self.training_env)
            return True

    env, callback = VecNormalize(make_vec_env("Pendulum-v1", 2)), Save()
    make_model(env, n_steps=16).learn(32, callback)
    assert pickle.loads(callback.saved).__dict__.keys() - {"venv"} == env.__getstate__().keys()
