"""A planar arm of five links that is told how far it is from its goal in the last step only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces, utils
from gymnasium.envs.mujoco import MujocoEnv
from numpy.typing import NDArray

__all__ = ["ReacherSparse5Env"]

_MODEL = Path(__file__).parent / "assets" / "reacher5.xml"
_CAMERA = {"distance": 1.3, "azimuth": 90.0, "elevation": -90.0, "lookat": np.zeros(3)}


class ReacherSparse5Env(MujocoEnv, utils.EzPickle):
    """The 5-link ReacherSparse task of Otto et al. (2021), section 5: reach a goal and be at rest in step 200.

    Made by ``gymnasium.make("sb3_trl/ReacherSparse5-v0")`` after ``import sb3_trl.envs``. Five links of 0.1 m turn
    about joints with armature 1 and damping 1; a step is 0.02 s. The first joint turns freely, the others within
    ±3 rad. An episode starts with the arm nearly straight along x, each angle within ±0.1 rad, and a goal uniform
    in the disc of radius 0.5 m, all of which the arm can reach. It is truncated after 200 steps.

    Action, ``Box(-1, 1, (5,))``: torque of each joint in units of 200 N·m. Torques are limited in the simulator, but
    an action outside costs what it is (see ``UnboundedActions``).

    Observation, ``Box(-inf, inf, (21,), float64)``:

    ====== ================================================
    0–4    cosine of each joint's angle
    5–9    sine of each joint's angle
    10, 11 goal's position x, y, in m
    12–16  angular velocity of each joint, in rad/s
    17–19  fingertip − goal, x, y, z (always 0), in m
    20     number of steps taken
    ====== ================================================

    Reward: −‖action‖² in every step; in step 200 also −200·‖fingertip − goal‖ − ‖angular velocities‖. The balanced
    variant (``sb3_trl/ReacherSparse5Balanced-v0``) adds −|Σ angles|, wrapped to [−π, π], in every step: the last
    link should point along x. ``info`` holds these terms as ``reward_ctrl``, ``reward_dist``, ``reward_vel`` and
    ``reward_balance``, and ``distance`` in m.

    :param balanced: Whether the last link's direction counts.
    :param kwargs: ``render_mode`` (``"human"``, ``"rgb_array"``, ``"depth_array"``, ``"rgbd_tuple"``), ``width``,
        ``height`` and other arguments of Gymnasium's ``MujocoEnv``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  declared so by Gymnasium
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 50,
    }
    horizon: ClassVar[int] = 200

    def __init__(self, balanced: bool = False, **kwargs: Any) -> None:
        utils.EzPickle.__init__(self, balanced, **kwargs)
        self.balanced = balanced
        self._steps = 0
        observation_space = spaces.Box(-np.inf, np.inf, (21,), np.float64)
        kwargs.setdefault("default_camera_config", _CAMERA)
        MujocoEnv.__init__(self, str(_MODEL), frame_skip=2, observation_space=observation_space, **kwargs)
        # Positions x, y, z in m that the simulator keeps current. To find them by name takes longer than to use them.
        self._fingertip, self._goal = (self.data.body(name).xpos for name in ("fingertip", "goal"))

    def step(  # type: ignore[override]
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, float]]:
        """Apply torques for 0.02 s."""
        self.do_simulation(action, self.frame_skip)
        mujoco.mj_kinematics(self.model, self.data)  # mj_step leaves the links where they were before its last move
        self._steps += 1
        is_last = self._steps >= self.horizon
        to_goal = self._fingertip - self._goal
        distance = float(np.linalg.norm(to_goal))
        terms = self._reward_terms(action, distance, is_last)
        if self.render_mode == "human":
            self.render()
        return self._observe(to_goal), sum(terms.values()), False, is_last, {**terms, "distance": distance}

    def reset_model(self) -> NDArray[np.float64]:
        """Draw the arm's angles and the goal."""
        self._steps = 0
        angles = self.init_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        velocities = self.init_qvel + self.np_random.uniform(-0.005, 0.005, self.model.nv)
        radius, direction = 0.5 * np.sqrt(self.np_random.uniform()), self.np_random.uniform(-np.pi, np.pi)
        self.data.mocap_pos[0] = radius * np.cos(direction), radius * np.sin(direction), 0.0
        self.set_state(angles, velocities)
        return self._observe(self._fingertip - self._goal)

    def _reward_terms(self, action: NDArray[np.float32], distance: float, is_last: bool) -> dict[str, float]:
        terms = {
            "reward_ctrl": -float(np.square(action, dtype=np.float64).sum()),
            "reward_dist": -200.0 * distance if is_last else 0.0,
            "reward_vel": -float(np.linalg.norm(self.data.qvel)) if is_last else 0.0,
        }
        if self.balanced:
            direction = self.data.qpos.sum()
            terms["reward_balance"] = -float(np.abs(np.arctan2(np.sin(direction), np.cos(direction))))
        return terms

    def _observe(self, to_goal: NDArray[np.float64]) -> NDArray[np.float64]:
        angles = self.data.qpos
        parts = [np.cos(angles), np.sin(angles), self._goal[:2], self.data.qvel, to_goal, [float(self._steps)]]
        return np.concatenate(parts)
