"""MuJoCo's camera goes along with the body that it films, and the floor does not end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["bodies_are_followed"]


@contextmanager
def bodies_are_followed() -> Iterator[None]:
    """While active, pictures of Gymnasium's MuJoCo tasks show the body wherever it goes, and a floor below it.

    The camera of Gymnasium 1.4 stands where the body began, and an agent that runs is soon out of the picture; the
    floor, to look at, is 80 metres long. Distance and angle stay those of ``default_camera_config``; cameras that were
    asked for by ``camera_name`` or ``camera_id``, and models without a camera that tracks, are left alone.
    """
    try:
        import mujoco
        from gymnasium.envs.mujoco import mujoco_rendering
    except ImportError:
        yield
        return
    renderers: Any = mujoco_rendering.MujocoRenderer
    original = renderers.render

    def render(renderer: Any, render_mode: str | None) -> Any:
        model, data = renderer.model, renderer.data
        if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0 and render_mode is not None:
            for floor in (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE).nonzero()[0]:
                _without_end(model, floor)
            if renderer.camera_id == -1 and render_mode != "human":
                renderer._get_viewer(render_mode).cam.lookat[:2] = data.body(1).xpos[:2]
        return original(renderer, render_mode)

    renderers.render = render
    try:
        yield
    finally:
        renderers.render = original


def _without_end(model: Any, floor: int) -> None:
    """Draw a plane as far as one can see, its squares as large as they were; bodies meet an endless one in any case."""
    size = model.geom_size[floor, :2]
    if size.all():
        model.mat_texrepeat[model.geom_matid[floor]] /= 2 * size
        size[:] = 0
