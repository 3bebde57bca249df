"""Scenarios of ViZDoom, seen as small pictures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from getpass import getuser
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from filelock import FileLock
from gymnasium import spaces, utils
from numpy.typing import NDArray

from sb3_trl.envs.extras import from_extra

__all__ = ["VizdoomEnv"]

cv2, vizdoom = from_extra("cv2", "opencv-python-headless"), from_extra("vizdoom")

#: What the game draws, height and width: its smallest screen, 4:3 as the scenarios' own.
_SCREEN = (120, 160)
#: Of the game, which calls a step a tic.
_TICS_PER_SECOND = 35
#: A folder that the game wants wherever it starts, and leaves empty. Where it cannot make it, Python crashes: a game
#: that starts beside it may have been first.
_LEFT_BEHIND = Path("_vizdoom")


class VizdoomEnv(gym.Env[Any, Any], utils.EzPickle):
    """A scenario that comes with ViZDoom: buttons, rewards, skill and time limit are those of its file.

    Made by ``gymnasium.make("sb3_trl/VizdoomHealthGathering-v0")`` and the like after ``import sb3_trl.envs``. The game
    is a process of its own without window and sound; it starts with the first ``reset`` and ends with ``close``, or
    when Python does. (Where Python is killed it stays behind asleep. ``SubprocVecEnv`` kills its workers if it is not
    closed.)

    Action, ``Discrete(1 + number of buttons)``: 0 presses nothing, i the i-th button of the scenario. It is held for
    ``frame_skip`` tics of 1/35 s.

    Observation, ``Box(0, 255, (*size, 3), uint8)``: the player's view. ``variables=True`` makes it a ``Dict`` of
    ``screen`` and ``variables``, the scenario's game variables (health, ammunition) as float32.

    Reward: the sum over the tics. At the scenario's time limit, counted in tics, the episode is truncated and the last
    picture is one of the running game (ViZDoom's own limit leaves none, so that no value can be estimated there). An
    episode that the game ends has its last picture again.

    :param scenario: Name of a file of ViZDoom's scenarios, such as ``"health_gathering"``.
    :param frame_skip: Tics in a step.
    :param size: Height and width of the observation.
    :param variables: Whether the observation has the scenario's game variables.
    :param render_mode: ``"rgb_array"``: ``render`` returns the screen, 120 × 160.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 9}  # noqa: RUF012  declared so by Gymnasium

    def __init__(
        self,
        scenario: str,
        frame_skip: int = 4,
        size: Sequence[int] = (36, 64),
        variables: bool = False,
        render_mode: str | None = None,
    ) -> None:
        utils.EzPickle.__init__(self, scenario, frame_skip, size, variables, render_mode)
        if frame_skip < 1:
            raise ValueError(f"frame_skip={frame_skip}: a step takes one tic or more.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} is unknown: choose 'rgb_array' or None.")
        self.frame_skip, self.render_mode = frame_skip, render_mode
        self.metadata = {**self.metadata, "render_fps": _TICS_PER_SECOND / frame_skip}
        self._height, self._width = size
        self._game = _game(scenario)
        self._limit = self._game.get_episode_timeout() or np.inf
        self._game.set_episode_timeout(0)
        self._tics = 0
        n_buttons = self._game.get_available_buttons_size()
        self._pressed = [
            [float(button == action) for button in range(1, n_buttons + 1)] for action in range(n_buttons + 1)
        ]
        self.action_space = spaces.Discrete(n_buttons + 1)
        screen = spaces.Box(0, 255, (self._height, self._width, 3), np.uint8)
        self.observation_space: spaces.Space[Any] = screen
        self._has_variables = variables
        if variables:
            n_variables = self._game.get_available_game_variables_size()
            if n_variables == 0:
                raise ValueError(f"variables=True: the scenario {scenario!r} has no game variables, leave it at False.")
            numbers = spaces.Box(-np.inf, np.inf, (n_variables,), np.float32)
            self.observation_space = spaces.Dict({"screen": screen, "variables": numbers})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; with the same seed, the same."""
        super().reset(seed=seed)
        if not self._game.is_running():
            self._start()
        self._game.set_seed(int(self.np_random.integers(2**32, dtype=np.uint32)))
        self._game.new_episode()
        self._tics = 0
        self._look()
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold a button for some tics."""
        tics = min(self.frame_skip, self._limit - self._tics)
        reward = self._game.make_action(self._pressed[int(action)], int(tics))
        self._tics += int(tics)
        terminated = self._game.is_episode_finished()
        if not terminated:
            self._look()
        return self._observation(), float(reward), terminated, not terminated and self._tics >= self._limit, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the screen."""
        return self._screen if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """End the game's process."""
        self._game.close()

    def _start(self) -> None:
        """Start the game, one at a time, and leave nothing in the folder where Python runs.

        :raises OSError: The folder where Python runs cannot be written to.
        """
        user = getattr(os, "getuid", getuser)()
        with FileLock(Path(tempfile.gettempdir()) / f"sb3_trl-vizdoom-{user}.lock"):
            was_there = _LEFT_BEHIND.exists()
            _LEFT_BEHIND.mkdir(exist_ok=True)
            try:
                self._game.init()
            finally:
                if not was_there:
                    with suppress(OSError):
                        _LEFT_BEHIND.rmdir()

    def _look(self) -> None:
        """Keep what the game shows; the game writes the next picture into the same memory."""
        state = self._game.get_state()
        self._screen = state.screen_buffer.copy()
        self._variables = state.game_variables

    def _observation(self) -> Any:
        screen = cv2.resize(self._screen, (self._width, self._height), interpolation=cv2.INTER_AREA)
        return {"screen": screen, "variables": self._variables.astype(np.float32)} if self._has_variables else screen


def _game(scenario: str) -> Any:
    """Set up the game of a scenario; it does not run yet."""
    folder = Path(vizdoom.scenarios_path)
    path = folder / f"{scenario}.cfg"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.cfg")))
        raise ValueError(f"scenario={scenario!r} is unknown: choose one of {known}.")
    game = vizdoom.DoomGame()
    game.load_config(str(path))
    # Otherwise a doom2.wad in the folder where Python runs changes what everything looks like.
    game.set_doom_game_path(str(folder.parent / "freedoom2.wad"))
    game.set_doom_config_path(os.devnull)  # settings of other games played here do not count, and none are kept
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(getattr(vizdoom.ScreenResolution, "RES_{1}X{0}".format(*_SCREEN)))
    return game
