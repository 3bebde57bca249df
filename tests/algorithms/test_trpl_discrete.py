"""TRPL on discrete action spaces: the region that holds, the loss, what is refused, and that it learns."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from support import ACTION_SPACES, ActionEnv, PointEnv, all_equal, collect, further, parameters, small, update, vec_env

from sb3_trl import TRPL, FixPO, LeanPPO, StateBound
from sb3_trl.algorithms.losses import normalize
from sb3_trl.policies import ProjectedCategoricalDistribution, SingleOptimizerPolicy
from sb3_trl.projections import Categorical, KLProjection
from sb3_trl.seeds.batch import SeedBatch

DISCRETE = [name for name in ACTION_SPACES if name != "box"]
every_space = pytest.mark.parametrize("space", DISCRETE)


def make(space: str = "discrete", **kwargs) -> TRPL:
    options = {"n_steps": 64, "batch_size": 16, "n_epochs": 3, "n_critic_epochs": 1, "learning_rate": 1e-2}
    env = vec_env(2, ActionEnv, action_space=ACTION_SPACES[space])
    return small(TRPL, env, **(options | kwargs))


def predicted(model: TRPL, observations: th.Tensor) -> Categorical:
    model.policy.set_training_mode(False)
    with th.no_grad():
        return model.policy.predicted(observations).double()


@every_space
def test_the_policy_says_the_same_whichever_way_it_is_asked(space):
    model = make(space)
    observations = th.rand(7, *model.observation_space.shape)
    distribution = model.policy.get_distribution(observations)
    actions = distribution.sample()
    values, log_prob, entropy = model.policy.evaluate_actions(observations, actions)
    assert isinstance(distribution, ProjectedCategoricalDistribution)
    assert actions.shape == (7, *model.action_space.shape)
    assert th.equal(log_prob, distribution.log_prob(actions))
    assert th.equal(entropy, distribution.entropy())
    assert th.equal(values, model.policy.predict_values(observations))
    likeliest, _ = model.policy.predict(observations.numpy(), deterministic=True)
    assert np.array_equal(likeliest, distribution.mode().numpy())
    torchs = distribution.distribution.log_prob(actions.long() if space == "multi_binary" else actions)
    assert th.allclose(torchs, log_prob, atol=1e-6)


@every_space
def test_networks_outputs_are_those_of_ppo(space):
    """Given PPO's parameters, it acts as PPO does."""
    ours = make(space)
    theirs = small(PPO, vec_env(2, ActionEnv, action_space=ACTION_SPACES[space]))
    ours.policy.load_state_dict(theirs.policy.state_dict())
    observations = th.rand(5, *ours.observation_space.shape)
    distribution, expected = (model.policy.get_distribution(observations) for model in (ours, theirs))
    actions = expected.sample()
    assert th.equal(distribution.mode().float(), expected.mode().float())
    assert th.allclose(distribution.log_prob(actions), expected.log_prob(actions), atol=1e-6)
    assert th.allclose(distribution.entropy(), expected.entropy(), atol=1e-6)


@every_space
def test_the_loss_is_that_of_the_projected_policy(space):
    model = make(space, kl_bound=1e-3, learning_rate=3e-2)
    rollout = collect(model)
    region = model._trust_region(rollout)
    update(model)  # away from the old policy
    new = model.policy.predicted(rollout.observations)
    projected = KLProjection()(new, region.old, kl_bound=1e-3)
    assert 0 < region.is_inside(new).double().mean() < 1
    ratio = (projected.log_prob(rollout.actions) - rollout.old_log_prob).exp()
    expected = -(ratio * normalize(rollout.advantages)).mean() + 8.0 * new.kl(projected.detach()).mean()
    loss, _ = model._policy_loss(model.policy.predicted, rollout, region, _weights(model))
    assert th.allclose(loss, expected, atol=1e-6)


def _weights(model: TRPL):
    weights = model._weights()
    return weights._replace(trust_region=weights.trust_region.tensor)


@every_space
@pytest.mark.parametrize("learning_rate", [1e-2, 1.0])
def test_a_hard_trust_region_holds_everywhere(space, learning_rate):
    """Also with learning rates that are a hundred times too large."""
    model = make(space, hard=True, kl_bound=0.01, learning_rate=learning_rate)
    moved = []
    for i in range(3):
        rollout = collect(model)
        old = predicted(model, rollout.observations)
        log = update(model, seed=i)
        kl = predicted(model, rollout.observations).kl(old)
        assert (kl <= 0.01).all()
        assert log["trust_region/violation_fraction"] == 0.0
        assert log["trust_region/kl_max"] == pytest.approx(kl.max().item(), abs=1e-9)
        moved.append(kl.max().item())
    assert max(moved) > 0


def test_regression_takes_the_policy_to_its_projection():
    distances = []
    for epochs in (0, 30):
        model = make(kl_bound=1e-3, trust_region_coef=0.0, n_regression_epochs=epochs)
        rollout = collect(model)
        log = update(model)
        distances.append(log["trust_region/kl_max"])
    assert distances[1] < 0.5 * distances[0], rollout


@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_entropy_control(equality, first):
    """The loss's policy has the entropy of the schedule; where the trust region comes last, as far as that allows."""
    model = make(
        "multi_discrete",
        entropy_schedule="linear",
        target_entropy=0.1,
        entropy_equality=equality,
        entropy_first=first,
        kl_bound=10.0,
        learning_rate=3e-2,
    )
    model.learn(128)
    rollout = collect(model)
    region = model._trust_region(rollout)
    update(model)
    entropy = region.project(model.policy.predicted(rollout.observations)).entropy().double()
    bound = region.entropy_bound
    assert (entropy >= bound - 1e-5).all()
    if equality:
        assert th.allclose(entropy, bound.expand_as(entropy), atol=1e-5)


@pytest.mark.parametrize(
    ("bound", "smallest"),
    [(0.02, 0.02), ("lin_0.02", 0.01), (lambda progress: 0.04 * progress, 0.02), (None, 0.01)],
)
def test_bounds(bound, smallest):
    model = make(kl_bound=bound)
    rollout = collect(model)
    model._current_progress_remaining = 0.5
    (epsilon,) = model._trust_region(rollout).bounds
    assert epsilon.item() == pytest.approx(smallest)


def test_a_bound_for_each_state():
    model = make(kl_bound=StateBound(lambda obs: 1e-4 * (1 + obs[:, 0].abs())), hard=True, learning_rate=0.1)
    rollout = collect(model)
    old = predicted(model, rollout.observations)
    update(model)
    kl = predicted(model, rollout.observations).kl(old)
    assert (kl <= 1e-4 * (1 + rollout.observations[:, 0].abs().double())).all()


def test_the_projections_own_bound():
    model = make(projection=KLProjection(kl_bound=0.3))
    assert model._trust_region(collect(model)).bounds[0].item() == pytest.approx(0.3)


@pytest.mark.traced
@pytest.mark.parametrize("space", ["discrete", *further("multi_discrete", "multi_binary")])
def test_compiled_equals_eager(space):
    models = [make(space, compile=compile, n_epochs=2).learn(256) for compile in (False, True)]
    assert any(step.is_compiled for step in models[1]._compiled_steps.values())
    for name, value in parameters(models[0]).items():
        assert th.allclose(parameters(models[1])[name], value, rtol=1e-3, atol=1e-5), name


@every_space
def test_save_and_load(space, tmp_path):
    model = make(space).learn(128)
    model.save(tmp_path / "model")
    loaded = TRPL.load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert all_equal(parameters(model), parameters(loaded))
    model.policy.save(tmp_path / "policy.pth")
    observation = model.observation_space.sample()
    policy = type(model.policy).load(tmp_path / "policy.pth", device="cpu")
    for other in (loaded, policy):
        assert np.array_equal(
            other.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
        )
    loaded.learn(128, reset_num_timesteps=False)


@every_space
def test_ppo_with_the_policy(space):
    env = vec_env(2, ActionEnv, action_space=ACTION_SPACES[space])
    for cls in (PPO, LeanPPO, FixPO):
        model = small(cls, env, SingleOptimizerPolicy).learn(64)
        assert model.predict(model.observation_space.sample())[0].shape == model.action_space.shape


def test_seeds_train_together():
    def env(seed: int):
        return vec_env(2, ActionEnv, action_space=spaces.Discrete(3))

    options = {"n_steps": 32, "batch_size": 16, "n_epochs": 1, "n_critic_epochs": 1, "device": "cpu", "compile": False}
    batches = [SeedBatch(TRPL, "MlpPolicy", env, seeds=seeds, **options) for seeds in ([0, 1, 2], [1])]
    for batch in batches:
        batch.learn(128)
    assert all_equal(parameters(batches[0].models[1]), parameters(batches[1].models[0]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mean_bound": 0.03}, r"mean_bound=0.03 bounds policies of another kind: in Discrete\(3\) use kl_bound"),
        ({"cov_bound": "lin_1e-3"}, r"cov_bound=lin_1e-3 bounds policies of another kind.* use kl_bound"),
        ({"kl_bound": -0.1}, "kl_bound=-0.1 must be positive"),
        ({"kl_bound": float("nan")}, "kl_bound=nan must be positive"),
        ({"projection": "w2"}, "WassersteinProjection is for Gaussians.* are categorical: use 'kl'"),
        ({"projection": "frobenius"}, "FrobeniusProjection is for Gaussians"),
        ({"projection": "joint_kl"}, "JointKLProjection is for Gaussians"),
        ({"policy_kwargs": {"covariance": "full"}}, "covariance='full' is for Gaussians"),
        ({"policy_kwargs": {"init_std": 0.5}}, "init_std=0.5 is for Gaussians"),
        ({"policy_kwargs": {"init_std": 0.37}}, "init_std=0.37 is for Gaussians"),
        ({"policy_kwargs": {"contextual_std": True}}, "contextual_std=True is for Gaussians"),
        ({"kl_bound": 0.01, "projection": None}, "kl_bound=0.01 needs a trust region"),
        (
            {"entropy_schedule": "linear", "target_entropy": 2.0},
            r"target_entropy=2.0: no policy .* more than 1.099",
        ),
        (
            {"entropy_schedule": "linear", "target_entropy": 0.0, "entropy_equality": True},
            "target_entropy=0.0 with entropy_equality=True must be positive",
        ),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        make(**kwargs)


def test_kl_bound_is_for_discrete_actions():
    with pytest.raises(ValueError, match=r"kl_bound=0.1 bounds policies of another kind.*use mean_bound and cov_bound"):
        TRPL("MlpPolicy", PointEnv(), kl_bound=0.1)


def test_it_learns():
    """To add what the observation tells to add."""
    model = make(n_steps=128, batch_size=32, n_epochs=5, kl_bound=0.05, trust_region_coef=5.0)
    model.learn(4096 * 2)
    env = ActionEnv(ACTION_SPACES["discrete"])
    rewards = []
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        for _ in range(16):
            observation, reward, *_ = env.step(model.predict(observation, deterministic=True)[0])
            rewards.append(reward)
    assert np.mean(rewards) > 0.4, "0.5 is the best there is; drawn actions have 0"
