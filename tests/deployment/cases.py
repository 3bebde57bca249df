"""Policies of every kind with environments of every kind, and what they see and do."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, LeanTRPO, RecurrentTRPL
from sb3_trl.policies import SingleOptimizerPolicy

N_ENVS = 7
#: Where float32 has steps of 0.008: what is left of an observation without its mean must not depend on them.
FAR = 1e5

VECTOR = spaces.Box(-np.inf, np.inf, (5,))
IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
DICT = spaces.Dict({"position": VECTOR, "image": IMAGE, "kind": spaces.Discrete(4), "flags": spaces.MultiBinary(2)})
BOX = spaces.Box(np.array([-0.5, -1.0, -2.0], np.float32), np.array([0.5, 3.0, 2.0], np.float32))
SQUARE = spaces.Box(-1.0, 1.0, (2, 2))


class SpacesEnv(gym.Env):
    """Random observations of any space.

    :param offset: Mean of observations that are real numbers.
    :param masks: Whether one of five actions is impossible.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, offset: float = 0.0, masks: bool = False
    ) -> None:
        self.offset = offset
        self.observation_space, self.action_space = observation_space, action_space
        if masks:
            self.action_masks = lambda: np.array([True, False, True, True, True])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(self.observation_space), {}

    def step(self, action):
        return self._observe(self.observation_space), 0.0, False, False, {}

    def _observe(self, space):
        if isinstance(space, spaces.Dict):
            return {key: self._observe(part) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Box) and space.dtype == np.float32:
            return (self.offset + 3 * self.np_random.standard_normal(space.shape)).astype(np.float32)
        space.seed(int(self.np_random.integers(1 << 30)))
        return space.sample()


class Recorder(VecEnvWrapper):
    """Keeps what the environments themselves said."""

    def reset(self):
        self.seen = [self.venv.reset()]
        return self.seen[-1]

    def step_wait(self):
        observations, *others = self.venv.step_wait()
        self.seen.append(observations)
        return observations, *others


@dataclass
class Case:
    """A model and how its environments are wrapped.

    :param cls: Algorithm.
    :param observation: Observation space of an environment.
    :param action: Action space.
    :param policy: Policy.
    :param normalize: Arguments of ``VecNormalize``, ``None`` for none.
    :param stack: Frames.
    :param masks: Whether environments have masks.
    :param kwargs: Of the algorithm.
    """

    cls: type[BaseAlgorithm]
    observation: spaces.Space
    action: spaces.Space
    policy: Any = "MlpPolicy"
    normalize: dict[str, Any] | None = None
    stack: int = 1
    masks: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        """Return the model, with parameters and statistics that are far from those at the start."""
        offset = FAR if self.normalize is not None and self.normalize.get("norm_obs", True) else 0.0
        make = partial(SpacesEnv, self.observation, self.action, offset, self.masks)
        env: Any = Recorder(DummyVecEnv([make] * N_ENVS))
        if self.normalize is not None:
            env = VecNormalize(env, **self.normalize)
        if self.stack > 1:
            env = VecFrameStack(env, self.stack)
        kwargs = {"n_steps": 8, "batch_size": 8, "seed": 0, "device": "cpu"} | self.kwargs
        if self.cls is A2C:
            del kwargs["batch_size"]
        model = self.cls(self.policy, env, **kwargs)
        with th.no_grad():
            for parameter in model.policy.parameters():
                parameter.normal_(0, 0.1 if parameter.dim() < 2 else 2 / parameter[0].numel() ** 0.5)
        self.walk(model, 20)
        if model.get_vec_normalize_env() is not None:
            model.get_vec_normalize_env().training = False
        return model

    def walk(self, model: Any, steps: int) -> Any:
        """Step the environments with random actions; return the policy's last observations."""
        env = model.get_env()
        env.seed(3)
        observations = env.reset()
        for _ in range(steps):
            observations = env.step(np.array([self.action.sample() for _ in range(N_ENVS)]))[0]
        return observations

    def inputs(self, model: Any) -> dict[str, np.ndarray]:
        """Return what the environments said last, in a file's names, with frames stacked."""
        env = model.get_env()
        while not isinstance(env, Recorder):
            env = env.venv
        last = env.seen[-1]
        if isinstance(last, dict):
            return {f"observation.{key}": value for key, value in last.items()}
        return {"observation": np.concatenate(env.seen[-self.stack :], -1)}


def _policy(**kwargs: Any) -> dict[str, Any]:
    return {"policy_kwargs": {"net_arch": [16], **kwargs}}


#: Every distribution and every kind of observations, two at a time; all with noise but for gSDE.
CASES: dict[str, Case] = {
    "diagonal": Case(TRPL, VECTOR, BOX, normalize={"clip_obs": 1.0, "epsilon": 4.0}, kwargs=_policy()),
    "full": Case(
        PAPI,
        DICT,
        BOX,
        "MultiInputPolicy",
        normalize={"norm_obs_keys": ["position"]},
        kwargs=_policy(covariance="full"),
    ),
    "contextual": Case(LeanTRPO, IMAGE, BOX, "CnnPolicy", kwargs=_policy()),
    "contextual_full": Case(
        TRPL, VECTOR, SQUARE, normalize={}, stack=3, kwargs=_policy(covariance="full", contextual_std=True)
    ),
    "contextual_diagonal": Case(
        PPO, VECTOR, BOX, SingleOptimizerPolicy, normalize={}, kwargs=_policy(contextual_std=True)
    ),
    "images": Case(TRPL, IMAGE, BOX, "CnnPolicy", stack=2, kwargs=_policy(contextual_std=True)),
    "discrete": Case(TRPL, spaces.Discrete(4), spaces.Discrete(5), kwargs=_policy()),
    "multi_discrete": Case(TRPL, spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2]), kwargs=_policy()),
    "multi_binary": Case(TRPL, spaces.MultiBinary(3), spaces.MultiBinary(4), kwargs=_policy()),
    "masks": Case(TRPL, VECTOR, spaces.Discrete(5), normalize={}, masks=True, kwargs=_policy()),
    "gsde": Case(FixPO, VECTOR, BOX, normalize={}, kwargs=_policy(squash_output=True) | {"use_sde": True}),
    "ppo": Case(PPO, DICT, BOX, "MultiInputPolicy", normalize={"norm_obs_keys": ["position"]}, kwargs=_policy()),
    "ppo_images_normalized": Case(
        PPO, spaces.Box(0, 255, (3, 36, 40), np.uint8), spaces.MultiDiscrete([2, 3]), "CnnPolicy", normalize={},
        kwargs=_policy(normalize_images=False),
    ),
    "ppo_multi_binary": Case(PPO, VECTOR, spaces.MultiBinary(4), normalize={}, kwargs=_policy()),
    "lean_ppo_discrete": Case(LeanPPO, VECTOR, spaces.Discrete(3), normalize={"norm_obs": False}, kwargs=_policy()),
    "a2c": Case(A2C, spaces.Box(-np.inf, np.inf, (2, 3)), SQUARE, normalize={}, kwargs=_policy()),
    "maskable": Case(MaskablePPO, VECTOR, spaces.MultiDiscrete([3, 2]), normalize={}, masks=True, kwargs=_policy()),
    "trpl_lstm": Case(
        RecurrentTRPL, VECTOR, SQUARE, "MlpLstmPolicy", normalize={},
        kwargs=_policy(lstm_hidden_size=8, covariance="full", contextual_std=True),
    ),
    "lstm": Case(
        RecurrentPPO, VECTOR, BOX, "MlpLstmPolicy", normalize={}, kwargs=_policy(lstm_hidden_size=8, n_lstm_layers=2)
    ),
}  # fmt: skip

#: Cases of which ONNX files are made, which takes a second: every kind of input, of scale, of head and of memory.
OF_ONNX = CASES.keys() - {"contextual_diagonal", "ppo", "ppo_multi_binary", "lean_ppo_discrete", "a2c", "maskable"}
