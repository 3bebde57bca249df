"""What a file says of itself."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import stable_baselines3
import torch as th

import sb3_trl
from sb3_trl import ExportedPolicy
from sb3_trl.deployment.formats import FORMATS


@pytest.mark.parametrize("format_name", FORMATS)
def test_metadata_is_the_same_in_every_format(exported, format_name):
    _, model, policy = exported("full", format_name)
    known = policy.metadata
    assert known == exported("full").policy.metadata
    assert known == ExportedPolicy(policy.path).metadata
    assert known["algorithm"] == "PAPI"
    assert known["timesteps"] == model.num_timesteps
    assert known["versions"] == {
        "sb3_trl": sb3_trl.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
    }
    assert [(port["name"], port["dtype"], port["shape"]) for port in known["inputs"]] == [
        ("observation.flags", "int8", ["batch", 2]),
        ("observation.image", "uint8", ["batch", 36, 40, 3]),
        ("observation.kind", "int64", ["batch"]),
        ("observation.position", "float32", ["batch", 5]),
        ("noise", "float32", ["batch", 3]),
    ]
    assert known["inside"] == {
        "normalization": {"position": {"clip": 10.0}},
        "images_divided_by_255": ["observation.image"],
        "one_hot": ["observation.kind"],
        "action": "clipped to the space",
    }
    assert known["action_space"]["low"] == [-0.5, -1.0, -2.0]
    assert known["observation_space"]["spaces"]["position"]["low"] is None
    assert "PAPI, observation.flags: int8['batch', 2]" in repr(policy)


@pytest.mark.parametrize(
    ("name", "action"),
    [("gsde", "tanh, scaled to the space"), ("discrete", "likeliest"), ("contextual_full", "clipped to the space")],
)
def test_what_becomes_of_actions(exported, name, action):
    assert exported(name).policy.metadata["inside"]["action"] == action


def test_onnx_alone_knows_all_of_it(exported):
    """The file has the names, shapes and metadata, no other files, and operators of ONNX only."""
    path = exported("contextual_full").policy.path
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    session = onnxruntime.InferenceSession(path)
    assert [(port.name, port.shape, port.type) for port in session.get_inputs()] == [
        ("observation", ["batch", 15], "tensor(float)"),
        ("noise", ["batch", 4], "tensor(float)"),
    ]
    assert [(port.name, port.shape[1:]) for port in session.get_outputs()] == [("action", [2, 2])]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["sb3_trl"])
    assert metadata["outside"] == {"frame_stack": 3, "wrappers": []}
    assert not list(path.parent.glob(f"{path.name}.*")), "weights are in the file"


def test_torch_alone_runs_the_others(exported):
    """Without this package: what ``torch.jit.load`` and ``torch.export.load`` return takes the inputs in order."""
    case, model, policy = exported("multi_discrete", "torchscript")
    inputs = {**case.inputs(model), "noise": np.zeros((7, 5), np.float32)}
    tensors = [th.as_tensor(value) for value in inputs.values()]
    expected = policy.run(inputs)["action"]
    files = {"sb3_trl": ""}
    assert np.array_equal(th.jit.load(str(policy.path), _extra_files=files)(*tensors), expected)
    assert json.loads(files["sb3_trl"]) == policy.metadata
    path = exported("multi_discrete", "torch").policy.path
    assert np.array_equal(th.export.load(path).module()(*tensors), expected)
