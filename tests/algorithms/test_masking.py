"""Action masks: what is impossible is never done, nor counted, and users of MaskablePPO find what they know."""

from itertools import product

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import BaseCallback
from support import ACTION_SPACES, ActionEnv, all_equal, collect, further, parameters, small, update, vec_env

from sb3_trl import TRPL, FixPO, SeedBatch, TRPLPolicy
from sb3_trl.policies.forward import DistributionAndValues
from sb3_trl.policies.masks import Masked, check_masks, sizes_of
from sb3_trl.rollouts.rollout import rollout_from_buffer

DISCRETE = {name: space for name, space in ACTION_SPACES.items() if name != "box"}
ALGORITHMS = [TRPL, FixPO]
every_space = pytest.mark.parametrize("space", DISCRETE)
every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)


class MaskedEnv(ActionEnv):
    """Its observation says what is impossible; doing it is an error.

    :param action_space: Discrete.
    :param least: The fewest actions of a factor that are possible.
    """

    def __init__(self, action_space: spaces.Space, least: int = 1) -> None:
        super().__init__(action_space)
        self.least = least

    def action_masks(self) -> np.ndarray:
        generator = np.random.default_rng(int(1e6 * abs(self.state[1])))
        masks = []
        for size in sizes_of(self.action_space):
            mask = generator.random(size) < 0.6
            mask[generator.permutation(size)[: self.least]] = True
            masks.append(mask)
        return np.concatenate(masks)

    def step(self, action):
        chosen, start = np.atleast_1d(action), 0
        for size, one in zip(sizes_of(self.action_space), chosen, strict=True):
            assert self.action_masks()[start + int(one)], f"{action} is impossible"
            start += size
        return super().step(action)


class OnlyOneAction(MaskedEnv):
    def action_masks(self) -> np.ndarray:
        return np.concatenate([np.arange(size) == size - 1 for size in sizes_of(self.action_space)])


def make(cls, space: str = "discrete", env: type[gym.Env] = MaskedEnv, **kwargs):
    options = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "learning_rate": 1e-2, "normalize_advantage": False}
    return small(cls, vec_env(2, env, action_space=ACTION_SPACES[space]), **(options | kwargs))


@every_space
@every_algorithm
def test_nothing_impossible_is_done(cls, space):
    """The environment raises if it is."""
    model = make(cls, space).learn(64 * 3)
    env = model.get_env()
    observations = env.reset()
    for deterministic in (True, False):
        for _ in range(20):
            actions, state = model.predict(
                observations, deterministic=deterministic, action_masks=get_action_masks(env)
            )
            assert state is None
            observations, *_ = env.step(actions)
    single, _ = model.predict(observations[0], action_masks=get_action_masks(env)[0])
    assert np.shape(single) == model.action_space.shape


@every_space
@every_algorithm
def test_what_is_stored_is_what_sb3_contribs_distribution_says(cls, space):
    model = make(cls, space)
    rollout = collect(model, 64)
    (observations, masks), actions = rollout.observations, rollout.actions
    assert masks.dtype == th.bool
    assert 0 < masks.double().mean() < 1
    with th.no_grad():
        features = model.policy.extract_features(observations)
        latent = model.policy.mlp_extractor.forward_actor(features[0] if isinstance(features, tuple) else features)
        logits = model.policy.action_net(latent)
    theirs = make_masked_proba_distribution(model.action_space)
    if space == "multi_binary":  # two logits for each bit there
        logits = th.stack([th.zeros_like(logits), logits], -1).flatten(1)
    theirs.proba_distribution(logits)
    theirs.apply_masking(masks)
    expected = theirs.log_prob(actions.squeeze(-1) if space == "discrete" else actions)
    assert th.allclose(rollout.old_log_prob, expected, atol=1e-5)
    ours, _ = DistributionAndValues(model.policy)(Masked(observations, masks))
    assert th.allclose(ours.entropy(), theirs.entropy(), atol=1e-5)
    assert th.equal(ours.mode().float(), theirs.mode().float())


@every_space
@every_algorithm
def test_the_bound_holds_over_what_is_possible(cls, space):
    kwargs = {"hard": True, "kl_bound": 0.01} if cls is TRPL else {"kl_bound": 0.01, "kl_direction": "new_old"}
    model = make(cls, space, learning_rate=0.03, **kwargs)
    moved = 0.0
    for seed in range(3):
        rollout = collect(model, 64)
        old = _log_probs(model, rollout.observations)
        log = update(model, seed=seed)
        new = _log_probs(model, rollout.observations)
        kl = th.where(new.isneginf(), 0.0, new.exp() * (new - old)).sum((-2, -1))
        assert (kl <= 0.01 + 1e-9).all()
        assert log["trust_region/kl_max"] == pytest.approx(kl.max().item(), rel=1e-4)
        moved = max(moved, kl.max().item())
    assert moved > 1e-6


def _log_probs(model, observations: Masked) -> th.Tensor:
    """Log-probabilities ``(n, factors, k)`` in float64, by torch."""
    plain, masks = observations
    model.policy.set_training_mode(False)
    with th.no_grad():
        features = model.policy.extract_features(plain)
        features = features[0] if isinstance(features, tuple) else features
        logits = model.policy.action_net(model.policy.mlp_extractor.forward_actor(features)).double()
    sizes = sizes_of(model.action_space)
    if isinstance(model.action_space, spaces.MultiBinary):
        logits = th.stack([th.zeros_like(logits), logits], -1).flatten(1)
    logits = logits.masked_fill(~masks, -th.inf)
    parts = [part.log_softmax(-1) for part in logits.split(sizes, -1)]
    widest = max(sizes)
    padded = [th.nn.functional.pad(part, (0, widest - part.shape[-1]), value=-th.inf) for part in parts]
    return th.stack(padded, 1)


TRACED = [(TRPL, "multi_discrete"), (FixPO, "multi_binary")]


@pytest.mark.traced
@pytest.mark.parametrize(
    ("cls", "space"), [*TRACED, *further(*(case for case in product(ALGORITHMS, DISCRETE) if case not in TRACED))]
)
def test_compiled_equals_eager(cls, space):
    models = [make(cls, space, compile=compile, learning_rate=1e-3).learn(64 * 3) for compile in (False, True)]
    assert any(step.is_compiled for step in models[1]._compiled_steps.values())
    for name, value in parameters(models[0]).items():
        assert th.allclose(parameters(models[1])[name], value, rtol=1e-3, atol=1e-4), name


@every_space
@every_algorithm
def test_one_action_alone(cls, space):
    """There is nothing to learn, and nothing breaks."""
    model = make(cls, space, OnlyOneAction).learn(64 * 2)
    rollout = rollout_from_buffer(model.rollout_buffer)
    assert th.equal(rollout.old_log_prob, th.zeros(64))
    assert all(p.isfinite().all() for p in model.policy.parameters())


@every_space
@pytest.mark.parametrize("env", [MaskedEnv, OnlyOneAction])
@pytest.mark.parametrize("equality", [False, True])
def test_entropy_control(space, env, equality):
    """The bound is that of the schedule, or the largest entropy that what is possible at a state allows."""
    if env is OnlyOneAction and equality:
        return
    options = {"entropy_schedule": "linear", "target_entropy": 0.3, "entropy_equality": equality, "kl_bound": 10.0}
    model = make(TRPL, space, env, **options).learn(64)
    rollout = collect(model, 64)
    region = model._trust_region(rollout)
    update(model)
    projected = region.project(model.policy.predicted(rollout.observations)).double()
    largest = projected.largest_entropy()
    assert (projected.entropy() >= th.minimum(region.entropy_bound, largest) - 1e-5).all()


@every_algorithm
def test_seeds_learn_as_they_do_alone(cls):
    def env(seed: int):
        return vec_env(2, MaskedEnv, action_space=spaces.Discrete(3))

    options = {"n_steps": 32, "batch_size": 16, "n_epochs": 1, "device": "cpu", "compile": False}
    batches = [SeedBatch(cls, "MlpPolicy", env, seeds=seeds, **options) for seeds in ([0, 1, 2], [1])]
    for batch in batches:
        batch.learn(128)
    assert all_equal(parameters(batches[0].models[1]), parameters(batches[1].models[0]))


@every_algorithm
def test_with_the_class_in_the_place_of_maskable_ppo(cls):
    """The wrapper, the evaluation and the arguments of sb3-contrib."""

    def masked() -> gym.Env:
        return ActionMasker(_Unmasked(spaces.Discrete(3)), lambda env: env.unwrapped.possible())

    for algorithm in (MaskablePPO, cls):
        model = algorithm("MlpPolicy", masked(), n_steps=32, batch_size=16, seed=0, device="cpu")
        model.learn(64, use_masking=True)
        mean, _ = evaluate_policy(model, masked(), n_eval_episodes=3, use_masking=True, warn=False)
        assert np.isfinite(mean)
        observation, _ = masked().reset(seed=0)
        action, _ = model.predict(observation, action_masks=np.array([False, True, False]))
        assert action == 1


class _Unmasked(MaskedEnv):
    """Without the method that is looked for."""

    action_masks = None  # type: ignore[assignment]

    def possible(self) -> np.ndarray:
        return np.array([False, True, True])

    def step(self, action):
        assert action in (1, 2)
        return ActionEnv.step(self, action)


@every_algorithm
def test_masks_can_be_left_out(cls):
    class Lenient(MaskedEnv):
        def step(self, action):
            return ActionEnv.step(self, action)

    model = make(cls, env=Lenient)
    model.learn(64, use_masking=False)
    assert not isinstance(rollout_from_buffer(model.rollout_buffer).observations, Masked)
    model.learn(64)
    assert isinstance(rollout_from_buffer(model.rollout_buffer).observations, Masked)
    model.learn(64, use_masking=False)
    assert not isinstance(rollout_from_buffer(model.rollout_buffer).observations, Masked)


def test_callbacks_find_the_masks():
    class Look(BaseCallback):
        def _on_step(self) -> bool:
            masks = self.locals["action_masks"]
            assert masks.shape == (2, 3)
            assert masks[np.arange(2), self.locals["actions"]].all()
            assert (self.locals["log_probs"] <= 0).all()
            return True

    make(TRPL).learn(64, callback=Look())


@every_algorithm
def test_masks_that_leave_nothing(cls):
    class Stuck(MaskedEnv):
        def action_masks(self) -> np.ndarray:
            return np.full(3, self.steps != 5)

    with pytest.raises(ValueError, match="mask of environment 0 at step 6 of the rollout leaves no action possible"):
        make(cls, env=Stuck).learn(64)


@pytest.mark.parametrize(
    ("space", "masks", "message"),
    [
        (spaces.Discrete(3), np.ones((2, 4)), r"shape \(2, 4\): 2 environments with Discrete\(3\) need \(2, 3\)"),
        (spaces.MultiDiscrete([2, 3]), np.array([[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]), "0 leaves no action of factor 1"),
        (spaces.Box(-1.0, 1.0, (2,)), np.ones((2, 2)), "have no masks: they are for Discrete"),
    ],
)
def test_bad_masks(space, masks, message):
    with pytest.raises(ValueError, match=message):
        check_masks(masks, space, 2)


@every_algorithm
def test_bad_input(cls):
    plain = small(cls, vec_env(2, ActionEnv, action_space=spaces.Discrete(3)))
    with pytest.raises(ValueError, match="use_masking=True, but the environments have no action_masks"):
        plain.learn(16, use_masking=True)
    with pytest.raises(ValueError, match="leaves no action possible"):
        plain.predict(np.zeros(4, np.float32), action_masks=np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"need \(1, 3\)"):
        plain.predict(np.zeros(4, np.float32), action_masks=np.ones(2, bool))


def test_a_policy_of_ones_own():
    class Own(TRPLPolicy):
        def forward(self, obs, deterministic=False):
            return super().forward(obs, deterministic)

    model = small(TRPL, vec_env(2, MaskedEnv, action_space=spaces.Discrete(3)), Own)
    with pytest.raises(ValueError, match=r"Action masks need a policy .* not Own and .*use_masking=False"):
        model.learn(16)


def test_masks_are_looked_at_once_a_step():
    """A mask that is another one at every look is the one with which the action was drawn."""

    class Fickle(ActionEnv):
        def action_masks(self) -> np.ndarray:
            self.mask = np.zeros(3, bool)
            self.mask[self.np_random.permutation(3)[:2]] = True
            return self.mask

        def step(self, action):
            assert self.mask[action]
            return super().step(action)

    model = make(TRPL, env=Fickle).learn(64 * 2)
    assert all(p.isfinite().all() for p in model.policy.parameters())
