"""Small environments and short cuts for the tests."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO
from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.algorithms.projecting import ProjectingAlgorithm
from sb3_trl.projections import Gaussian, Projection
from sb3_trl.rollouts.rollout import Rollout, rollout_from_buffer
from sb3_trl.study.plan import Plan

#: The folder that holds the package, its documentation, its examples and its benchmarks.
ROOT = Path(__file__).parent.parent
KINDS = ["kl", "w2", "frobenius", "joint_kl"]
ACTION_SPACES = {
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}


class PointEnv(gym.Env):
    """Name the goal that is in the observation: reward −‖a − goal‖², so 0 is optimal.

    :param shape: Shape of the action.
    :param observation: ``"box"``, ``"dict"``, ``"image"``, ``"discrete"``, ``"multi_discrete"`` or ``"multi_binary"``.
    :param length: Steps in an episode, which a time limit ends.
    """

    def __init__(self, shape: tuple[int, ...] = (3,), observation: str = "box", length: int = 10) -> None:
        self.dim = int(np.prod(shape))
        self.length = length
        self.kind = observation
        self.action_space = spaces.Box(-1.0, 1.0, shape, np.float32)
        goal = spaces.Box(-1.0, 1.0, (self.dim,), np.float32)
        self.observation_space: spaces.Space = {
            "box": goal,
            "dict": spaces.Dict({"goal": goal, "time": spaces.Box(0.0, 1.0, (1,)), "sign": spaces.Discrete(2)}),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            "discrete": spaces.Discrete(4),
            "multi_discrete": spaces.MultiDiscrete([2, 3]),
            "multi_binary": spaces.MultiBinary(3),
        }[observation]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        reward = -float(np.square(action.reshape(-1) - self.goal).sum())
        self.steps += 1
        return self._observe(), reward, False, self.steps >= self.length, {}

    def _observe(self) -> Any:
        self.goal = self.np_random.uniform(-1, 1, self.dim).astype(np.float32)
        sign = int(self.goal[0] > 0)
        return {
            "box": self.goal,
            "dict": {"goal": self.goal, "time": np.full(1, self.steps / self.length, np.float32), "sign": sign},
            "image": np.full((36, 36, 1), 127 * (1 + self.goal[0]), np.uint8),
            "discrete": sign,
            "multi_discrete": np.array([sign, 2 * sign]),
            "multi_binary": np.array([sign, 0, 1], np.int8),
        }[self.kind]


class ActionEnv(gym.Env):
    """The reward depends on the observation and on every number of the action, whatever its space."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (4,))
        self.action_space = copy.deepcopy(action_space)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        reward = float(self.state[0] * np.sum(action))
        return self._observe(), reward, False, self.steps >= 16, {}

    def _observe(self):
        self.state = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self.state


class BrokenEnv(PointEnv):
    """A ``PointEnv`` that returns a number that is not finite.

    :param what: ``"observation"``, ``"reward"``, ``"reset"``, or ``"last"`` for the last observation of an episode.
    :param at: The step at which it does so, counted from 1; ``None`` for never.
    """

    def __init__(self, what: str, at: int | None, value: float = np.nan, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.what, self.at, self.value, self.total = what, at, value, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        observation, info = super().reset(**kwargs)
        return self._break(observation) if self.what == "reset" else observation, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.total += 1
        if self.total == self.at and self.what == "observation":
            observation = self._break(observation)
        if self.total == self.at and self.what == "reward":
            reward = self.value
        if truncated and self.what == "last":
            observation = self._break(observation)
        return observation, reward, terminated, truncated, info

    def _break(self, observation: Any) -> Any:
        goal = (observation["goal"] if self.kind == "dict" else observation).copy()
        goal[-1] = self.value
        return observation | {"goal": goal} if self.kind == "dict" else goal


class LinearExtractor(BaseFeaturesExtractor):
    """An extractor with parameters, so that actor and critic have something to share."""

    def __init__(self, observation_space: spaces.Box, batch_norm: bool = False) -> None:
        super().__init__(observation_space, features_dim=8)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(int(np.prod(observation_space.shape)), 8), nn.Tanh()]
        self.layers = nn.Sequential(*layers, *([nn.BatchNorm1d(8)] if batch_norm else []))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


SHARED = {"share_features_extractor": True, "features_extractor_class": LinearExtractor}


#: Action spaces and arguments of FixPO: every distribution of which the parameters are known.
DISTRIBUTIONS: list[tuple[str, dict[str, Any]]] = [
    *[(space, {}) for space in ACTION_SPACES],
    ("box", {"use_sde": True}),
    ("box", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    ("box", {"use_sde": True, "policy_kwargs": {"full_std": False, "use_expln": True}}),
]


class OwnDistributionPolicy(ActorCriticPolicy):
    """Known by its torch distributions alone, which look at their arguments."""

    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(latent_pi)


class Uncompiled:
    """Stands in for ``Compiled``, and calls the function itself."""

    def __init__(self, function, cpu_options=None) -> None:
        self.function = function

    def __call__(self, varying, fixed):
        return self.function(varying, fixed)

    def forget(self) -> None:
        pass


class Recorder(BaseCallback):
    """Keep what every update logged, one dict for each."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._keep()

    def _on_training_end(self) -> None:
        self._keep()

    def _keep(self) -> None:
        if "trust_region/kl_mean" in self.logger.name_to_value:
            self.logs.append(dict(self.logger.name_to_value))


def vec_env(n_envs: int = 1, cls: type[gym.Env] = PointEnv, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: cls(**kwargs)] * n_envs)


def make_model(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> TRPL:
    """Return a model whose updates take a few milliseconds, on a ``PointEnv`` unless another is given.

    Its standard deviation is 1 at first, if ``policy_kwargs`` does not say otherwise.
    """
    small = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "n_critic_epochs": 2, "seed": 0, "device": "cpu"}
    is_gaussian = not isinstance(env, str) or "CartPole" not in env
    policy_kwargs = ({"init_std": 1.0} if is_gaussian else {}) | (kwargs.pop("policy_kwargs", None) or {})
    return TRPL(policy, PointEnv() if env is None else env, policy_kwargs=policy_kwargs, **(small | kwargs))


def train_and_record(model: TRPL, updates: int) -> list[dict[str, float]]:
    """Train for some updates and return what each logged."""
    recorder = Recorder()
    model.learn(updates * model.n_steps * model.n_envs, callback=recorder)
    assert len(recorder.logs) == updates
    return recorder.logs


def collect(model: TRPL, total_timesteps: int = 10_000) -> Rollout:
    """Collect one rollout without an update, and return it."""
    total, callback = model._setup_learn(total_timesteps, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model._update_current_progress_remaining(model.num_timesteps, total)
    return rollout_from_buffer(model.rollout_buffer)


def copy_rollout(source: TRPL, target: TRPL) -> None:
    """Put ``target`` where ``source`` is: the same rollout, the same progress."""
    for name, value in vars(source.rollout_buffer).items():
        if isinstance(value, np.ndarray) or name in ("observations", "pos", "full", "generator_ready"):
            setattr(target.rollout_buffer, name, copy.deepcopy(value))
    target._current_progress_remaining = source._current_progress_remaining
    target.num_timesteps = source.num_timesteps


def update(model: TRPL, seed: int = 0) -> dict[str, float]:
    """Update the model with the rollout in its buffer and return the log."""
    th.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    model.train()
    return dict(model.logger.name_to_value)


def parameters(model: TRPL) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def all_equal(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> bool:
    return a.keys() == b.keys() and all(th.equal(a[key], b[key]) for key in a)


def double(gaussian: Gaussian) -> Gaussian:
    return gaussian.with_scale(gaussian.scale.double(), gaussian.mean.double())


@th.no_grad()
def gaussian(model: TRPL, observations: Any) -> Gaussian:
    """Return the acting policy at observations, a copy in float64."""
    return double(model.policy.gaussian(observations))


def distances(projection: Projection, p: Gaussian, q: Gaussian) -> tuple[th.Tensor, th.Tensor]:
    mean, cov = projection.distance(p, q)
    return mean, cov.expand_as(mean)


def call(line: str, folder: Path | None = None) -> None:
    """Run ``sb3-trl`` in this process, in a folder."""
    import rl_zoo3.train
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_trl import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder or Path.cwd())
        patch.setattr(sys, "argv", ["sb3-trl", *line.split()])
        patch.setattr(sys, "orig_argv", [sys.executable, *sys.argv])
        patch.setattr(rl_zoo3.train, "ExperimentManager", ExperimentManager)
        cli.main()


def load_example(name: str) -> ModuleType:
    """Import one of the examples."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def event_file(folder: Path) -> EventAccumulator:
    """Return the TensorBoard events in a folder."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


#: The algorithms that do what SB3's PPO does, but for the update.
ALGORITHMS = [TRPL, FixPO, PAPI, LeanPPO]


def small(cls: type[OnPolicyAlgorithm], env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """Return a model of any algorithm, also of SB3's, whose updates take next to no time."""
    options: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}
    options |= {"n_critic_epochs": 1} if issubclass(cls, ProjectingAlgorithm) else {}
    options |= {"compile": False} if issubclass(cls, TrustRegionAlgorithm) else {}
    if issubclass(cls, TRPO):
        del options["n_epochs"]
        options |= {"n_critic_updates": 1, "cg_max_steps": 2}
    kwargs["policy_kwargs"] = {"net_arch": [4]} | (kwargs.get("policy_kwargs") or {})
    return cls(policy, vec_env() if env is None else env, **(options | kwargs))


def both(cls: type, call: Callable[[type], Any]) -> list[Any]:
    """Return what a call makes of the algorithm and of PPO: a result, or the kind of its error."""
    results = []
    for each in (cls, PPO):
        try:
            results.append(call(each))
        except Exception as error:
            results.append(type(error))
    return results


def further(*cases: Any) -> list[Any]:
    """Return cases of a parametrised test that are compiled (``make compiled``), but not traced besides."""
    marks = (pytest.mark.traced, pytest.mark.further)
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks) for case in cases]


def unknown_hyperparameters(plan: Plan) -> dict[str, set[str]]:
    """Return by run what a study gives to an algorithm that has no such argument."""
    from sb3_trl.zoo.experiment import hyperparameters_of

    found = {}
    for group in plan.groups:
        run = group.runs[0]
        known = hyperparameters_of(run.algorithm)
        unknown = set() if known is None else {*run.hyperparameters} - known
        if unknown:
            found[str(run)] = unknown
    return found
