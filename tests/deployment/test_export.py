"""An exported policy acts as ``model.predict`` does behind the environments' own wrappers."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from support import small

import sb3_trl
from sb3_trl.deployment.formats import FORMATS

from .cases import CASES, N_ENVS, OF_ONNX

MASKS = np.tile([True, False, True, True, True], (N_ENVS, 1))


def others(case, model, policy, batch: int = N_ENVS) -> dict[str, np.ndarray]:
    """Return the inputs that are not observations: no noise, the environment's masks, a memory."""
    rng = np.random.default_rng(0)
    known = {}
    for port in policy.metadata["inputs"]:
        shape = (batch, *port["shape"][1:])
        if port["name"] == "noise":
            known["noise"] = np.zeros(shape)
        elif port["name"] == "action_masks":
            known["action_masks"] = MASKS[:batch]
        elif port["name"] == "episode_start":
            known["episode_start"] = np.arange(batch) % 3 == 1
        elif port["name"].startswith("state."):
            known[port["name"]] = rng.normal(size=shape).astype(np.float32)
    return known


def predicted(model, observations, given):
    kwargs = {}
    if "action_masks" in given:
        kwargs["action_masks"] = given["action_masks"]
    if "episode_start" in given:
        kwargs["episode_start"] = given["episode_start"]
        kwargs["state"] = tuple(np.moveaxis(given[f"state.{name}"], 0, 1) for name in ("hidden", "cell"))
    return model.predict(observations, deterministic=True, **kwargs)


#: Cases for the format that takes longest and goes the way of ONNX: every kind of input, of scale and of head.
OF_TORCH = ("full", "contextual_full", "images", "multi_discrete", "masks", "gsde", "lstm")
OF = {"onnx": OF_ONNX, "torch": OF_TORCH}


@pytest.mark.parametrize(
    ("name", "format_name"),
    [(name, known) for name in CASES for known in FORMATS if name in OF.get(known, CASES)],
)
def test_it_acts_as_predict_does(exported, name, format_name):
    """Of a batch of 7, with the observations of the environments themselves; and of each of them alone."""
    case, model, policy = exported(name, format_name)
    observations = case.walk(model, 3)
    given = others(case, model, policy)
    inputs = case.inputs(model) | given
    expected, state = predicted(model, observations, given)
    outputs = policy.run(inputs)
    assert outputs["action"].shape == expected.shape
    assert outputs["action"].dtype == case.action.dtype
    assert np.allclose(outputs["action"], expected, rtol=1e-5, atol=1e-5)
    if state is not None:
        for port, part in zip(("hidden", "cell"), state, strict=True):
            assert np.allclose(outputs[f"next_state.{port}"], np.moveaxis(part, 0, 1), atol=1e-5)
    for row in range(2):
        alone = policy.run({key: np.asarray(value)[row : row + 1] for key, value in inputs.items()})
        assert np.allclose(alone["action"], expected[row : row + 1], rtol=1e-5, atol=1e-5)
    assert np.ptp(expected, axis=0).any(), "actions differ from one observation to the next"


def test_actions_are_clipped_to_the_space_and_observations_to_theirs(exported):
    case, _, policy = exported("diagonal")
    far = np.full((1, 5), 1e7, np.float32)
    farther = policy.run({"observation": 2 * far, "noise": np.zeros((1, 3))})["action"]
    assert np.array_equal(policy.run({"observation": far, "noise": np.zeros((1, 3))})["action"], farther)
    for sign, bound in ((-1, case.action.low), (1, case.action.high)):
        action = policy.run({"observation": far, "noise": np.full((1, 3), sign * 1e6)})["action"]
        assert np.array_equal(action[0], bound)


# --- noise ---


@pytest.mark.parametrize(
    "name",
    ["diagonal", "full", "contextual_diagonal", "contextual_full", "contextual", "images", "ppo", "lstm", "trpl_lstm"],
)
def test_actions_are_the_mean_plus_the_scale_times_noise(exported, name):
    case, model, policy = exported(name)
    observations = case.walk(model, 3)
    given = others(case, model, policy)
    noise = np.random.default_rng(1).normal(size=given["noise"].shape).astype(np.float32)
    action = policy.run(case.inputs(model) | given | {"noise": noise})["action"]
    tensor, _ = model.policy.obs_to_tensor(observations)
    with th.no_grad():
        if name.endswith("lstm"):
            state = tuple(th.as_tensor(np.moveaxis(given[f"state.{part}"], 0, 1)) for part in ("hidden", "cell"))
            starts = th.as_tensor(given["episode_start"], dtype=th.float32)
            distribution = model.policy.get_distribution(tensor, state, starts)[0]
        else:
            distribution = model.policy.get_distribution(tensor)
    torchs = distribution.distribution
    mean = torchs.mean.numpy()
    if hasattr(torchs, "scale_tril"):
        scale = torchs.scale_tril.expand(len(mean), -1, -1).numpy()
    else:
        scale = th.diag_embed(torchs.stddev).numpy()
    drawn = (mean + np.einsum("bij,bj->bi", scale, noise)).reshape(-1, *case.action.shape)
    assert np.allclose(action, np.clip(drawn, case.action.low, case.action.high), rtol=1e-5, atol=2e-5)
    assert not np.allclose(action, np.clip(mean.reshape(action.shape), case.action.low, case.action.high), atol=1e-2)


@pytest.mark.parametrize(
    "name", ["discrete", "multi_discrete", "multi_binary", "ppo_multi_binary", "lean_ppo_discrete", "masks", "maskable"]
)
def test_discrete_actions_are_drawn_as_often_as_the_policy_says(exported, name):
    """The shares of every action at one observation, within 5 standard errors of their probabilities."""
    case, model, policy = exported(name)
    n = 20_000
    observation = case.walk(model, 3)[:1]
    assert policy.metadata["noise"] == ("logistic" if isinstance(case.action, spaces.MultiBinary) else "gumbel")
    draw = getattr(np.random.default_rng(0), policy.metadata["noise"])
    inputs = case.inputs(model)["observation"][:1]
    given = {"observation": np.repeat(inputs, n, 0)}
    given |= {key: np.repeat(value[:1], n, 0) for key, value in others(case, model, policy).items()}
    given["noise"] = draw(size=given["noise"].shape)
    rows, counts = np.unique(policy.run(given)["action"].reshape(n, -1), axis=0, return_counts=True)
    tensor, _ = model.policy.obs_to_tensor(np.repeat(observation, len(rows), 0))
    actions = th.as_tensor(rows)
    with th.no_grad():
        distribution = model.policy.get_distribution(tensor)
        if "action_masks" in given:
            masks = th.as_tensor(given["action_masks"][: len(rows)])
            masked = getattr(distribution, "masked", None) or distribution.apply_masking
            masked(masks if hasattr(distribution, "masked") else masks.numpy())
        action = actions.squeeze(-1) if not case.action.shape else actions.float()
        probabilities = distribution.log_prob(action).exp().numpy()
    assert len(rows) > 1
    assert np.abs(counts / n - probabilities).max() < 5 * 0.5 / n**0.5
    if case.masks:
        assert not (rows[:, 0] == 1).any(), "which is impossible"


# --- what is inside ---


def test_without_normalization(exported, tmp_path):
    """Which leaves the policy alone, whose observations are normalised already."""
    case, model, _ = exported("diagonal")
    policy = sb3_trl.export(model, tmp_path / "policy.pt", vec_normalize=False)
    observations = case.walk(model, 3)
    expected, _ = model.predict(observations, deterministic=True)
    assert np.allclose(policy(observation=observations)["action"], expected, atol=1e-5)
    assert policy.metadata["inside"]["normalization"] == {}


def test_normalization_of_a_file(exported, tmp_path):
    """Given as a path, or as the object, for a model that has no environments of its own."""
    case, model, exported_policy = exported("contextual_full")
    model.get_vec_normalize_env().save(tmp_path / "vecnormalize.pkl")
    bare = type(model).load(_saved(model, tmp_path), device="cpu")
    observations = case.walk(model, 3)
    expected, _ = model.predict(observations, deterministic=True)
    for given in (tmp_path / "vecnormalize.pkl", str(tmp_path / "vecnormalize.pkl"), model.get_vec_normalize_env()):
        policy = sb3_trl.export(bare, tmp_path / "policy.pt", vec_normalize=given)
        assert np.allclose(policy.run(case.inputs(model))["action"], expected, atol=1e-5)
    assert exported_policy.metadata["outside"]["frame_stack"] == 3
    assert policy.metadata["outside"]["frame_stack"] == 1, "it does not know the environments"


def _saved(model, folder):
    model.save(folder / "model.zip")
    return folder / "model.zip"


def test_a_policy_alone(exported, tmp_path):
    case, model, _ = exported("discrete")
    policy = sb3_trl.export(model.policy, tmp_path / "policy.pt")
    expected, _ = model.predict(case.walk(model, 3), deterministic=True)
    assert np.array_equal(policy.run(case.inputs(model))["action"], expected)
    assert policy.metadata["algorithm"] is None


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_image_layout(exported, tmp_path, layout):
    case, model, default = exported("contextual")
    assert default.metadata["inputs"][0]["shape"] == ["batch", 36, 40, 3], "as the environment has them"
    policy = sb3_trl.export(model, tmp_path / "policy.pt", image_layout=layout)
    observations = case.walk(model, 1)
    expected, _ = model.predict(observations, deterministic=True)
    given = observations if layout == "CHW" else np.moveaxis(observations, 1, -1)
    assert np.allclose(policy(observation=given)["action"], expected, atol=1e-5)
    assert policy.metadata["inputs"][0]["dtype"] == "uint8"
    assert ("last" in policy.metadata["inputs"][0]["meaning"]) == (layout == "HWC")


def test_inputs_have_the_types_of_what_the_environment_says(exported):
    """Before normalisation, which makes float32 of everything."""
    types = {name: exported(name, "torchscript").policy.metadata["inputs"][0]["dtype"] for name in CASES}
    assert types["ppo_images_normalized"] == types["contextual"] == "uint8"
    assert types["discrete"] == types["multi_discrete"] == "int64"
    assert types["multi_binary"] == "int8"
    assert types["diagonal"] == "float32"


def test_the_model_stays_as_it_is(tmp_path):
    model = CASES["contextual_diagonal"].model()
    model.policy.set_training_mode(True)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    statistics = model.get_vec_normalize_env().obs_rms.mean.copy()
    state = th.get_rng_state()
    sb3_trl.export(model, tmp_path / "policy.pt", noise=True)
    assert th.equal(state, th.get_rng_state())
    assert all(th.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.policy.parameters())
    assert np.array_equal(statistics, model.get_vec_normalize_env().obs_rms.mean)
    assert model.policy.training
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt"]


def test_masks_where_the_policy_has_learned_with_them(tmp_path):
    """SB3's PPO does not look at them, nor does an algorithm that was told not to."""
    case, path = CASES["masks"], tmp_path / "policy.pt"

    def names(model, **kwargs):
        return [port["name"] for port in sb3_trl.export(model, path, **kwargs).metadata["inputs"]]

    model = case.model()
    assert names(model) == ["observation", "action_masks"]
    assert names(model, action_masks=False) == ["observation"]
    model.use_masking = False
    assert names(model) == ["observation"]
    ppo = replace(case, cls=PPO).model()
    assert names(ppo) == ["observation"]
    assert names(ppo, action_masks=True) == ["observation", "action_masks"]


class ExportCallback(BaseCallback):
    """Exports while training runs, and keeps what ``predict`` says then."""

    def __init__(self, path, observations):
        super().__init__()
        self.path, self.observations, self.differences = path, observations, []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        policy = sb3_trl.export(self.model, self.path)
        expected, _ = self.model.predict(self.observations, deterministic=True)
        self.differences.append(np.abs(policy(observation=self.observations)["action"] - expected).max())


def test_export_while_training_runs(tmp_path):
    """And the training goes on as if there had been none."""
    callback = ExportCallback(tmp_path / "policy.pt", np.zeros((4, 3), np.float32))
    models = [small(sb3_trl.TRPL).learn(32, callback=each) for each in (callback, None)]
    assert len(callback.differences) == 4
    assert max(callback.differences) < 1e-5
    one, other = (model.policy.state_dict() for model in models)
    assert all(th.equal(one[name], other[name]) for name in one)
