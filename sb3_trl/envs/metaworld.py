"""Meta-World's tasks of a robot's arm, one at a time or many side by side, as Stable-Baselines3 takes them."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from sb3_trl.envs.extras import from_extra
from sb3_trl.envs.sawyer import swift

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

__all__ = ["MetaWorldEnv", "MultiTaskEnv", "metaworld_vec_env", "task_names"]

_classes = from_extra("metaworld.env_dict", extra="metaworld")
_Task = from_extra("metaworld.types", extra="metaworld").Task

#: What Meta-World puts behind a task's name.
_VERSION = "-v3"
_BENCHMARKS = {"MT10": _classes.MT10_V3, "MT50": _classes.MT50_V3}
_CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
#: Numbers that are observed of every task.
_SIZE = 39


class MetaWorldEnv(gym.Env[NDArray[np.float64], NDArray[np.float32]], EzPickle):
    """A task of Meta-World for a Sawyer arm, with another goal in every episode.

    Made by ``gymnasium.make("sb3_trl/MetaWorldPickPlace-v0")`` after ``import sb3_trl.envs``. An episode is truncated
    after 500 steps and never terminates. The reward is Meta-World's of version 2, from 0 to 10 in each step.

    Action, ``Box(-1, 1, (4,))``: by how much the hand moves along x, y and z, in cm, and the force that closes the
    gripper.

    Observation, ``Box(-inf, inf, (39,), float64)``, with the same entries in every task:

    ====== ======================================================================================
    0–2    position of the hand, in m
    3      how far the gripper is open, from 0 to 1
    4–17   position (3) and quaternion (4) of the first object and of the second; 0 if there is none
    18–35  entries 0–17 of the step before
    36–38  position of the goal, in m; 0 if it is hidden
    ====== ======================================================================================

    Goals (where there is one to choose, with them the object's place) are drawn as Meta-World draws them, ``n_goals``
    of them once and for all. Episodes take them in a random order, each once before any comes again: so many episodes
    are an evaluation over all goals. ``reset(seed=…)`` decides the order, ``goal_seed`` what the goals are: training
    and evaluations, copies of an environment and seeds of a study meet the same ones.

    ``info`` has what Meta-World's has, with ``success``, whether the task is fulfilled in this step, as 0.0 or 1.0;
    ``task``, its name; ``is_success``, whether it has been fulfilled in some step of the episode so far, which at the
    end is the episode's success as Stable-Baselines3 counts it; and ``is_success_at_end``, ``success`` as a bool.

    :param task: Its name, such as ``"pick-place"``; Meta-World's own, ``"pick-place-v3"``, will do.
    :param goal_observable: Whether the observation tells where the goal is.
    :param n_goals: Number of goals; None: every episode has one that has not been there before.
    :param goal_seed: Of the goals, 0 or more; with ``n_goals=None`` they depend on the seed of ``reset`` as well.
    :param render_mode: ``"rgb_array"``, ``"depth_array"`` or ``"human"``.
    :param camera_name: ``"corner"``, ``"corner2"``, ``"corner3"``, ``"corner4"``, ``"topview"``,
        ``"behindGripper"`` or ``"gripperPOV"``.
    :param width: Of pictures, in pixels.
    :param height: Of pictures, in pixels.
    :raises ValueError: for a task, camera or mode that there is not, or fewer than one goal.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  declared so by Gymnasium
        "render_modes": ["human", "rgb_array", "depth_array"],
        "render_fps": 80,
    }

    def __init__(
        self,
        task: str,
        goal_observable: bool = True,
        n_goals: int | None = 50,
        goal_seed: int = 0,
        render_mode: str | None = None,
        camera_name: str = "corner2",
        width: int = 480,
        height: int = 480,
    ) -> None:
        EzPickle.__init__(self, task, goal_observable, n_goals, goal_seed, render_mode, camera_name, width, height)
        _check(n_goals, goal_seed, render_mode, camera_name)
        self.task = _known(task)
        self.goal_observable, self.n_goals, self.goal_seed = goal_observable, n_goals, goal_seed
        self.render_mode = render_mode
        self.sawyer = swift(_classes.MT50_V3[self.task + _VERSION])(
            reward_function_version="v2", render_mode=render_mode, camera_name=camera_name, width=width, height=height
        )
        self._stands_on_its_head = camera_name.startswith("corner")  # so Meta-World hangs these cameras
        self.observation_space = spaces.Box(-np.inf, np.inf, (_SIZE,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._goals: dict[int, NDArray[np.float64]] = {}
        self._order: list[int] = []
        self._goal: int | None = None
        self._has_succeeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Begin an episode with the next goal."""
        super().reset(seed=seed)
        if seed is not None:
            self._order, self._goal = [], None
        self._goal = self._next_goal()
        self._set_goal(self._goals[self._goal] if self._goal in self._goals else self._draw(self._goal))
        self._has_succeeded = False
        observation, _ = self.sawyer.reset()
        return observation, {"task": self.task}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Move the hand and the gripper's fingers."""
        observation, reward, _, truncated, info = self.sawyer.step(action)
        succeeds = bool(info["success"])
        self._has_succeeded = self._has_succeeded or succeeds
        info |= {"task": self.task, "is_success": self._has_succeeded, "is_success_at_end": succeeds}
        return observation, float(reward), False, truncated, info

    def render(self) -> Any:
        """Return a picture, or show it."""
        picture = self.sawyer.render()
        return picture[::-1, ::-1].copy() if picture is not None and self._stands_on_its_head else picture

    def close(self) -> None:
        """Close the window, if there is one."""
        self.sawyer.close()

    def _next_goal(self) -> int:
        if self.n_goals is None:
            return int(self.np_random.integers(2**63))
        if not self._order:
            self._order = self.np_random.permutation(self.n_goals).tolist()
            if self._order[-1] == self._goal:  # it has just been there
                self._order.reverse()
        return self._order.pop()

    def _draw(self, goal: int) -> NDArray[np.float64]:
        """Return the numbers, drawn by Meta-World in a reset, that make a goal; they depend on nothing played before.

        A goal is drawn when its first episode begins: fifty of them take as long as a whole episode.
        """
        self.sawyer.np_random = np.random.default_rng([self.goal_seed, goal])
        self.sawyer.seeded_rand_vec, self.sawyer._freeze_rand_vec = True, False
        self.sawyer.reset()
        numbers = self.sawyer._last_rand_vec.copy()
        if self.n_goals is not None:
            self._goals[goal] = numbers
        return numbers

    def _set_goal(self, numbers: NDArray[np.float64]) -> None:
        data = {
            "env_cls": _classes.MT50_V3[self.task + _VERSION],
            "rand_vec": numbers,
            "partially_observable": not self.goal_observable,
        }
        self.sawyer.set_task(_Task(env_name=self.task + _VERSION, data=pickle.dumps(data)))


class MultiTaskEnv(gym.Env[NDArray[np.float64], NDArray[np.float32]], EzPickle):
    """One of several tasks of Meta-World, which of them its observation says: for one policy that learns them all.

    ``sb3_trl/MetaWorldMT10-v0`` and ``sb3_trl/MetaWorldMT50-v0``. ``reset(seed=…)`` chooses the task, the one with
    number ``seed`` modulo the number of tasks, and resets without a seed keep it: as Stable-Baselines3 and the RL Zoo
    give their environments seeds that follow each other, so many environments, or twice as many, have every task
    equally often. Without any seed the first reset draws the task. See also ``metaworld_vec_env``.

    Observation: that of ``MetaWorldEnv``, and behind it a one at the task's number among zeros.

    :param tasks: ``"MT10"``, ``"MT50"``, or names of tasks.
    :param task: The task, should it not depend on the seed.
    :param kwargs: Arguments of ``MetaWorldEnv``.
    :raises ValueError: for a task that there is not, or that is none of ``tasks``.
    """

    metadata = MetaWorldEnv.metadata

    def __init__(self, tasks: str | Sequence[str] = "MT10", task: str | None = None, **kwargs: Any) -> None:
        EzPickle.__init__(self, tasks, task, **kwargs)
        self.tasks = task_names(tasks)
        self.render_mode = kwargs.get("render_mode")
        self._kwargs = kwargs
        self._fixed = None if task is None else _index(_known(task), self.tasks)
        self._env = MetaWorldEnv(self.tasks[self._fixed or 0], **kwargs)
        self._is_chosen = task is not None
        n_tasks = len(self.tasks)
        low, high = np.full(_SIZE + n_tasks, -np.inf), np.full(_SIZE + n_tasks, np.inf)
        low[_SIZE:], high[_SIZE:] = 0.0, 1.0
        self.observation_space = spaces.Box(low, high, dtype=np.float64)
        self.action_space = self._env.action_space

    @property
    def task(self) -> str:
        """Name of the task that is played."""
        return self._env.task

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Choose the task if a seed is given, and begin an episode of it with the next goal."""
        super().reset(seed=seed)
        if seed is None and not self._is_chosen:
            seed = int(self.np_random.integers(2**31))
        if seed is not None and self._fixed is None:
            self._choose(self.tasks[seed % len(self.tasks)])
        observation, info = self._env.reset(seed=seed, options=options)
        return self._with_task(observation), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Move the hand and the gripper's fingers."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        return self._with_task(observation), reward, terminated, truncated, info

    def render(self) -> Any:
        """Return a picture, or show it."""
        return self._env.render()

    def close(self) -> None:
        """Close the window, if there is one."""
        self._env.close()

    def _choose(self, task: str) -> None:
        self._is_chosen = True
        if task != self._env.task:
            self._env.close()
            self._env = MetaWorldEnv(task, **self._kwargs)

    def _with_task(self, observation: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.zeros(_SIZE + len(self.tasks))
        whole[:_SIZE] = observation
        whole[_SIZE + self.tasks.index(self._env.task)] = 1.0
        return whole


def metaworld_vec_env(
    tasks: str | Sequence[str] = "MT10",
    seed: int | None = 0,
    copies: int = 1,
    vec_env_cls: Callable[..., VecEnv] | None = None,
    **kwargs: Any,
) -> VecEnv:
    """Return environments of all the tasks side by side: task after task, then all of them again for every copy.

    Each has Stable-Baselines3's ``Monitor``.

    :param tasks: ``"MT10"``, ``"MT50"``, or names of tasks.
    :param seed: Of the first; the others have those that follow. They decide the order of the goals.
    :param copies: Number of environments of each task.
    :param vec_env_cls: ``DummyVecEnv`` (by default), ``SubprocVecEnv`` or one like them.
    :param kwargs: Arguments of ``MetaWorldEnv``, ``goal_seed`` for example.
    :raises ValueError: for a task that there is not, or fewer than one copy.
    """
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    if copies < 1:
        raise ValueError(f"copies={copies}: there must be one environment of each task, or more.")
    names = task_names(tasks)

    def make(task: str) -> Monitor:
        return Monitor(MultiTaskEnv(names, task, **kwargs))

    env = (vec_env_cls or DummyVecEnv)([partial(make, name) for name in names * copies])
    env.seed(seed)
    return env


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """Return the names of tasks, in the order of their numbers.

    :param tasks: ``"MT10"``, ``"MT50"``, or the names themselves.
    :raises ValueError: for a name that is not known or comes twice, or if there are none.
    """
    if isinstance(tasks, str):
        if tasks not in _BENCHMARKS:
            raise ValueError(f"tasks={tasks!r} is unknown: choose 'MT10' or 'MT50', or give a list of tasks' names.")
        return [name.removesuffix(_VERSION) for name in _BENCHMARKS[tasks]]
    names = [_known(task) for task in tasks]
    if not names or len({*names}) < len(names):
        raise ValueError(f"tasks={names}: give the name of each task once, and of one at least.")
    return names


def _known(task: str) -> str:
    """Return the name of a task, without a version.

    :raises ValueError: if there is no such task.
    """
    names = task_names("MT50")
    name = task.removesuffix(_VERSION)
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1)
    guess = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"Meta-World has no task {task!r}.{guess} It has {', '.join(names)}.")


def _index(task: str, tasks: list[str]) -> int:
    if task not in tasks:
        raise ValueError(f"task={task!r} is none of the tasks: choose one of {', '.join(tasks)}.")
    return tasks.index(task)


def _check(n_goals: int | None, goal_seed: int, render_mode: str | None, camera_name: str) -> None:
    if n_goals is not None and n_goals < 1:
        raise ValueError(f"n_goals={n_goals}: give 1 or more, or None for a new goal in every episode.")
    if goal_seed < 0:
        raise ValueError(f"goal_seed={goal_seed}: give 0 or more.")
    modes = MetaWorldEnv.metadata["render_modes"]
    if render_mode is not None and render_mode not in modes:
        raise ValueError(f"render_mode={render_mode!r} is unknown: choose None or one of {', '.join(modes)}.")
    if camera_name not in _CAMERAS:
        raise ValueError(f"camera_name={camera_name!r} is unknown: choose one of {', '.join(_CAMERAS)}.")
