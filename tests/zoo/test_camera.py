"""What runs away stays in the picture."""

import os
import subprocess
import sys

import gymnasium as gym
import numpy as np

from sb3_trl.zoo import camera

CODE = """
import gymnasium as gym
from sb3_trl.zoo.camera import bodies_are_followed

def body_is_seen(**kwargs):
    env = gym.make("HalfCheetah-v5", render_mode="rgb_array", **kwargs)
    env.reset(seed=0)
    position = env.unwrapped.data.qpos.copy()
    position[0] = 100
    env.unwrapped.set_state(position, env.unwrapped.data.qvel)
    red, _, blue = picture = env.render().astype(int).transpose(2, 0, 1)
    env.close()
    has_floor = (picture.max(0) < 40).mean() > 0.1  # every other square is black
    return (red - blue > 40).sum() > 300 and has_floor  # it is brown

with bodies_are_followed():
    print(body_is_seen(), body_is_seen(default_camera_config={"distance": 6.0}), body_is_seen(camera_name="track"))
    free = gym.make("InvertedPendulum-v5", render_mode="rgb_array")
    free.reset(seed=0)
    followed = free.render()
print((free.render() == followed).all(), body_is_seen(camera_name="track"))
"""


def test_bodies_are_followed():
    """In a process of its own: MuJoCo chooses how to draw when it is imported."""
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"} | {"MUJOCO_GL": "egl"}
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [*4 * ["True"], "False"], "the last is what it is without"


def test_training_is_not_touched():
    """Bodies stand on the same floor, filmed or not."""
    env = gym.make("HalfCheetah-v5")

    def episode():
        env.reset(seed=0)
        return [env.step(np.full(6, (-1.0) ** step))[0] for step in range(20)]

    before = episode()
    floor = env.unwrapped.model.geom("floor").id
    camera._without_end(env.unwrapped.model, floor)
    assert not env.unwrapped.model.geom_size[floor, :2].any()
    assert np.array_equal(episode(), before)
