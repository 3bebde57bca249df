"""A network without the calls around its layers is the network."""

import pytest
import torch as th
from support import vec_env
from torch import nn

from sb3_trl import TRPL
from sb3_trl.policies.direct import direct
from sb3_trl.policies.forward import ForwardPass


def make_model(observation: str, policy: str, **policy_kwargs) -> TRPL:
    env = vec_env(2, observation=observation)
    return TRPL(policy, env, n_steps=8, batch_size=8, seed=0, device="cpu", policy_kwargs=policy_kwargs)


CASES = [
    ("box", "MlpPolicy", {}),
    ("box", "MlpPolicy", {"covariance": "full", "contextual_std": True, "activation_fn": nn.ReLU}),
    ("dict", "MultiInputPolicy", {"contextual_std": True}),
    ("image", "CnnPolicy", {}),
]


@pytest.mark.parametrize(("observation", "policy", "kwargs"), CASES)
def test_outputs_and_gradients_are_those_of_the_network(observation, policy, kwargs):
    model = make_model(observation, policy, **kwargs)
    observations = model.policy.obs_to_tensor(model.env.reset())[0]
    for method, optimizer in (("predicted", model.policy.optimizer), ("predict_values", model.policy.critic_optimizer)):
        forward = ForwardPass(model.policy, method)
        assert direct(forward) is not forward
        results = []
        for function in (forward, direct(forward)):
            out = function(observations)
            outputs = (out.mean, out.scale) if method == "predicted" else (out,)
            total = sum(output.sum() for output in outputs)
            results.append([*outputs, *th.autograd.grad(total, optimizer.param_groups[0]["params"])])
        assert all(th.equal(x, y) for x, y in zip(*results, strict=True))


def test_hooks_are_called():
    model, calls = make_model("box", "MlpPolicy"), []
    model.policy.mlp_extractor.policy_net[1].register_forward_hook(lambda *_: calls.append(1))
    direct(ForwardPass(model.policy, "predicted"))(th.zeros(1, *model.observation_space.shape))
    assert calls == [1]


def test_classes_of_others_are_called_as_they_are():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    layers = Doubled(nn.Linear(2, 2))
    x = th.randn(3, 2)
    assert th.equal(direct(layers)(x), layers(x))
    model = make_model("box", "MlpPolicy")
    own = type("Own", (type(model.policy),), {})
    model.policy.__class__ = own
    forward = ForwardPass(model.policy, "predicted")
    assert direct(forward)(x := th.zeros(1, *model.observation_space.shape)).mean.equal(forward(x).mean)
