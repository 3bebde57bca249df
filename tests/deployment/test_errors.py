"""What cannot be exported is refused in a sentence that says what to do."""

import importlib.util

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from support import LinearExtractor, PointEnv, small, vec_env

import sb3_trl
from sb3_trl import TRPL, ExportedPolicy, FixPO


@pytest.fixture(scope="module")
def model():
    return small(TRPL)


def refused(model, path, match, error=ValueError, **kwargs):
    with pytest.raises(error, match=match):
        sb3_trl.export(model, path, **kwargs)
    assert not path.exists()
    assert not path.parent.is_dir() or not list(path.parent.iterdir()), "nothing is left behind"


def test_formats(model, tmp_path):
    refused(model, tmp_path / "p.onnx", "format='onx' is unknown: choose one of 'onnx'", format="onx")
    refused(model, tmp_path / "p.zip", "its suffix may be that of 'onnx' \\(.onnx\\), 'torchscript'")
    refused(model, tmp_path / "p.pt", "files with format='onnx' end in '.onnx'", format="onnx")


def test_a_folder_that_is_not_there(model, tmp_path):
    refused(model, tmp_path / "nowhere" / "p.pt", "there is no folder .*nowhere")


def test_onnx_that_is_not_installed(model, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    refused(model, tmp_path / "p.onnx", r'needs onnxscript: pip install "sb3-trl\[export\]"', ImportError)
    assert sb3_trl.export(model, tmp_path / "p.pt").format == "torchscript", "which needs torch alone"


def test_a_vec_normalize_of_other_observations(model, tmp_path):
    other = VecNormalize(vec_env(shape=(2,)))
    refused(model, tmp_path / "p.pt", r"observations of shape \(2,\), but the policy takes \(3,\)", vec_normalize=other)
    other = VecNormalize(vec_env(observation="dict"), norm_obs_keys=["goal"])
    message = "statistics of a dictionary with 'goal', but the policy's observations are a single array"
    refused(model, tmp_path / "p.pt", message, vec_normalize=other)
    refused(model, tmp_path / "p.pt", "'x.pkl': there is no such file", vec_normalize="x.pkl")
    refused(model, tmp_path / "p.pt", "vec_normalize is a DummyVecEnv: give a VecNormalize", vec_normalize=vec_env())
    refused(model, tmp_path / "p.pt", "vec_normalize is a bool", vec_normalize=True)


def test_gsde_has_no_noise_of_one_step(tmp_path):
    gsde = small(FixPO, use_sde=True)
    refused(gsde, tmp_path / "p.pt", "gSDE keeps its noise for several steps", noise=True)


def test_images_and_masks_that_are_not_there(model, tmp_path):
    refused(model, tmp_path / "p.pt", "of which the policy's observations have none", image_layout="HWC")
    refused(model, tmp_path / "p.pt", "image_layout='WHC' is unknown: choose 'HWC'", image_layout="WHC")
    refused(model, tmp_path / "p.pt", "have no masks", action_masks=True)


def test_policies_that_are_something_else(tmp_path):
    dqn = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu")
    refused(dqn, tmp_path / "p.pt", "A DQNPolicy cannot be exported: known are actor-critic policies")
    refused(object(), tmp_path / "p.pt", "A object cannot be exported")


class ShyPolicy(ActorCriticPolicy):
    def _predict(self, observation, deterministic=False):
        return 0.5 * super()._predict(observation, deterministic)


class TruncatedGaussian(DiagGaussianDistribution):
    def mode(self):
        return super().mode().clamp(-0.1, 0.1)


class TruncatedPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule):
        self.action_dist = TruncatedGaussian(self.action_space.shape[0])
        super()._build(lr_schedule)


class BatchExtractor(FlattenExtractor):
    """Of batches of one size only, once it is traced."""

    def forward(self, observations):
        return super().forward(observations) + th.full((len(observations), 1), 1.0 / len(observations.tolist()))


class BranchingExtractor(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations) * (1 if observations.sum() > 0 else -1)


def test_policies_with_a_way_of_their_own(tmp_path):
    """By name where it is known to decide, and else because the file does not do what ``predict`` does."""
    refused(small(PPO, policy=ShyPolicy), tmp_path / "p.pt", r"ShyPolicy has a _predict\(\) of its own")
    model = small(PPO)
    model.policy.predict = lambda *args, **kwargs: (np.zeros((1, 3)), None)
    refused(model, tmp_path / "p.pt", r"has a predict\(\) of its own")
    truncated = small(PPO, policy=TruncatedPolicy)
    truncated.policy.action_net.bias.data.fill_(0.5)
    refused(truncated, tmp_path / "p.pt", "does not act as predict does")


def test_layers_that_are_no_plain_operations(tmp_path):
    branching = small(PPO, policy_kwargs={"features_extractor_class": BranchingExtractor})
    refused(branching, tmp_path / "p.pt2", "Its features extractor is a BranchingExtractor; layers of your own")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_layers_of_one_batch_size(tmp_path):
    batch = small(PPO, policy_kwargs={"features_extractor_class": BatchExtractor})
    refused(batch, tmp_path / "p.pt", "does not act as predict does")


@pytest.mark.parametrize("path", ["p.pt", "p.pt2"])
def test_layers_of_ones_own_that_are_plain(tmp_path, path):
    """A features extractor, with layers that act otherwise in training."""
    kwargs = {"features_extractor_class": LinearExtractor, "features_extractor_kwargs": {"batch_norm": True}}
    model = small(PPO, policy_kwargs=kwargs)
    model.learn(16)
    observations = np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    assert np.allclose(sb3_trl.export(model, tmp_path / path)(observation=observations)["action"], expected, atol=1e-5)


def test_files_that_are_something_else(model, tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        ExportedPolicy(tmp_path / "p.onnx")
    th.jit.save(th.jit.script(th.nn.Identity()), str(tmp_path / "p.pt"))
    with pytest.raises(ValueError, match="it was not written by export"):
        ExportedPolicy(tmp_path / "p.pt")


def test_inputs_that_are_something_else(model, tmp_path):
    policy = sb3_trl.export(model, tmp_path / "p.pt")
    with pytest.raises(ValueError, match="The policy takes observation, not obs"):
        policy(obs=np.zeros((1, 3)))


def test_a_file_is_replaced_only_by_one_that_is_right(model, tmp_path):
    path = tmp_path / "p.pt"
    sb3_trl.export(model, path)
    before = path.read_bytes()
    truncated = small(PPO, policy=TruncatedPolicy)
    truncated.policy.action_net.bias.data.fill_(0.5)
    with pytest.raises(ValueError, match="does not act"):
        sb3_trl.export(truncated, path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["p.pt"]


def test_moments_are_found_by_shape():
    from sb3_trl.deployment.normalization import fitted, statistics

    hwc, chw = np.arange(24.0).reshape(2, 3, 4), np.moveaxis(np.arange(24.0).reshape(2, 3, 4), -1, 0)
    assert np.array_equal(fitted(hwc, (4, 2, 3)), chw)
    assert np.array_equal(fitted(hwc, (8, 2, 3)), np.concatenate([chw, chw]))
    assert np.array_equal(fitted(chw, (8, 2, 3)), np.concatenate([chw, chw]))
    assert np.array_equal(fitted(np.arange(2.0), (4,)), [0, 1, 0, 1])
    env = VecNormalize(vec_env(cls=PointEnv))
    env.obs_rms = RunningMeanStd(shape=())
    with pytest.raises(ValueError, match="but the policy takes"):
        statistics(env, spaces.Box(-1, 1, (3,)))
