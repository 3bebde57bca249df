"""Meta-World's arm in less time: the same observations, rewards and infos, to the bit."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pytest.importorskip("metaworld", reason='pip install "sb3-trl[metaworld]"')

from metaworld.env_dict import MT50_V3
from metaworld.policies import ENV_POLICY_MAP
from metaworld.utils import reward_utils

from sb3_trl.envs.sawyer import swift
from sb3_trl.envs.scalars import norm, quaternion, tolerance
from sb3_trl.envs.settling import Settling


def arm(task_class: type, seed: int):
    """Return one of Meta-World's tasks, whose goals are drawn."""
    env = task_class(reward_function_version="v2")
    env._partially_observable, env._set_task_called = False, True
    env.__dict__.pop("sawyer_observation_space", None)
    env._freeze_rand_vec, env.seeded_rand_vec, env.np_random = False, True, np.random.default_rng(seed)
    return env


# Grasped, pushed with a stick, a reward with another sigmoid, nothing to touch.
@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("task", ["pick-place", "stick-push", "assembly", "reach-wall"])
def test_steps_are_the_same_to_the_bit(task):
    task_class, policy = MT50_V3[f"{task}-v3"], ENV_POLICY_MAP[f"{task}-v3"]()
    theirs, mine = arm(task_class, seed=1), arm(swift(task_class), seed=1)
    has_object, touches = task in {"pick-place", "stick-push"}, set()
    observation = theirs.reset()[0]
    np.testing.assert_array_equal(observation, mine.reset()[0])
    for _ in range(100):
        action = np.clip(policy.get_action(observation), -1.5, 1.5).astype(np.float32)
        (observation, *its), (seen, *others) = theirs.step(action), mine.step(action)
        np.testing.assert_array_equal(observation, seen)
        assert its == others
        assert type(its[0]) is type(others[0])
        if has_object:
            assert mine.touching_main_object == theirs.touching_main_object
            touches.add(bool(mine.touching_main_object))
    assert touches == ({False, True} if has_object else set()), "contacts were there to be seen"


# The hand alone, a body that is somewhere else for every goal, a task with more to reset than the hand.
@pytest.mark.parametrize("task", ["reach", "drawer-open", "faucet-close"])
def test_resets_are_the_same_to_the_bit(task):
    """Wherever an episode ends, the next begins as Meta-World's, the first time with a goal and later."""
    theirs, mine = arm(MT50_V3[f"{task}-v3"], seed=1), arm(swift(MT50_V3[f"{task}-v3"]), seed=1)
    rng, goals = np.random.default_rng(0), []
    for episode in range(9):
        if episode >= 3:
            for env in (theirs, mine):
                env._freeze_rand_vec, env._last_rand_vec = True, goals[episode % 3]
        np.testing.assert_array_equal(theirs.reset()[0], mine.reset()[0])
        goals.append(mine._last_rand_vec.copy())
        for action in rng.uniform(-1, 1, (rng.integers(1, 30), 4)).astype(np.float32):
            (observation, reward, *_), (seen, rewarded, *_) = theirs.step(action), mine.step(action)
            np.testing.assert_array_equal(observation, seen)
            assert reward == rewarded
        assert np.array_equal(theirs.init_tcp, mine.init_tcp)


def test_a_reset_that_begins_as_another_is_not_simulated_again(monkeypatch):
    env, other = (arm(swift(MT50_V3["reach-v3"]), seed=2) for _ in range(2))
    simulated = []
    for one in (env, other):
        simulate = one.do_simulation
        monkeypatch.setattr(one, "do_simulation", lambda *args, simulate=simulate: simulated.append(simulate(*args)))
    counts = []
    for one in (env, env, other):
        one.np_random = np.random.default_rng(5)
        simulated.clear()
        one.reset()
        counts.append(len(simulated))
    assert counts == [50, 1, 1], "Meta-World simulates 100 times"


@pytest.mark.parametrize("change", ["friction", "gravity", "frame_skip", "hand"])
def test_a_changed_arm_is_simulated(change):
    """Randomised domains: what is remembered is of the same model."""
    theirs, mine = arm(MT50_V3["push-v3"], seed=3), arm(swift(MT50_V3["push-v3"]), seed=3)
    for env in (theirs, mine):
        env.reset()
        if change == "friction":
            env.model.geom_friction[:, 0] *= 0.1
        elif change == "gravity":
            env.model.opt.gravity[2] = -2.0
        elif change == "frame_skip":
            env.frame_skip = 3
        else:
            env.hand_init_pos = env.hand_init_pos + 0.05
    np.testing.assert_array_equal(theirs.reset()[0], mine.reset()[0])


def test_the_latest_are_remembered():
    env = arm(swift(MT50_V3["reach-v3"]), seed=0)
    settling, simulated = Settling(size=2), []
    for beginning in (b"a", b"b", b"a", b"c", b"a"):
        settling.settle(env.model, env.data, beginning, lambda: simulated.append(1))
        assert len(settling) <= 2
    assert len(simulated) == 4, "a, b, c, and a again"


def test_it_is_a_class_of_meta_worlds_made_once():
    task_class = MT50_V3["pick-place-v3"]
    assert issubclass(swift(task_class), task_class)
    assert swift(task_class) is swift(task_class)
    assert swift(task_class).__name__ == task_class.__name__
    assert "reward_utils" in task_class.compute_reward.__globals__
    assert task_class.compute_reward.__globals__["reward_utils"] is reward_utils, "theirs is left as it is"
    assert swift(task_class).compute_reward is not task_class.compute_reward
    assert swift(task_class).compute_reward.__doc__ == task_class.compute_reward.__doc__


def test_what_a_task_has_of_its_own_is_not_replaced():
    """But for ``_reset_hand``, which goes on to the task's."""
    for task_class in MT50_V3.values():
        own = {name for cls in task_class.__mro__ if cls.__module__.startswith("metaworld.envs.") for name in vars(cls)}
        replaced = {name for name in vars(swift(task_class).__mro__[1]) if not name.startswith("__")}
        assert own & replaced <= {"_reset_hand"}


def test_quaternions_are_scipys():
    rng = np.random.default_rng(0)
    rotations = [Rotation.from_quat(q).as_matrix() for q in rng.normal(size=(2000, 4))]
    signs = [np.diag(d).astype(float) for d in ([1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1])]
    skewed = [matrix + 1e-7 * rng.normal(size=(3, 3)) for matrix in rotations[:50]]
    for matrix in rotations + signs + skewed:
        np.testing.assert_array_equal(quaternion(matrix), Rotation.from_matrix(matrix).as_quat())
    with pytest.raises(ValueError, match="determinant"):
        quaternion(np.diag([1.0, 1.0, -1.0]))


def test_tolerances_are_meta_worlds():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(2000, 4))
    sigmoids = ["long_tail", "long_tail", "gaussian", "linear"]
    for i, (x, lower, width, margin) in enumerate(numbers):
        wanted = (x if i % 2 else float(x), (0.1 * lower, 0.1 * lower + abs(width)), abs(margin), sigmoids[i % 4])
        mine, theirs = tolerance(*wanted), reward_utils.tolerance(*wanted)
        assert mine == theirs
        assert type(mine) is type(theirs)
    array = numbers[:, 0]
    np.testing.assert_array_equal(
        tolerance(array, (0, 1), 0.5, "long_tail"), reward_utils.tolerance(array, (0, 1), 0.5, "long_tail")
    )
    assert tolerance(0.5, (0, 0), 0.0, "long_tail") == 0.0, "no margin"
    with pytest.raises(ValueError, match="Lower bound"):
        tolerance(0.5, (1, 0), 0.5, "long_tail")
    with pytest.raises(ValueError, match="non-negative"):
        tolerance(0.5, (0, 1), -0.5, "long_tail")


def test_lengths_are_numpys():
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=n) * 10.0 ** rng.integers(-200, 200) for n in (1, 2, 3, 3, 4, 7, 39) for _ in range(200)]
    special = [np.zeros(3), np.full(3, np.nan), np.full(3, np.inf), np.zeros(0), np.float32([1, 2]), np.arange(3)]
    tables = [rng.normal(size=(3, 3)), rng.normal(size=8)[::2], rng.normal(size=(4, 4))[:, 1], [3.0, 4.0], 2.0]
    with np.errstate(over="ignore"):
        for x in (*vectors, *special, *tables):
            for order in (None, 2):
                mine, numpys = (
                    norm(x, ord=order) if np.ndim(x) else norm(x),
                    np.linalg.norm(x, ord=order if np.ndim(x) else None),
                )
                np.testing.assert_array_equal(mine, numpys, strict=True)
    np.testing.assert_array_equal(norm(tables[0], axis=1), np.linalg.norm(tables[0], axis=1))
    np.testing.assert_array_equal(norm(vectors[0], keepdims=True), np.linalg.norm(vectors[0], keepdims=True))
    assert norm(np.arange(-3.0, 3.0), 1) == 9.0
