"""Exported policies that several tests look at."""

import functools
from typing import Any, NamedTuple

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from torch.onnx._internal.exporter._registration import ONNXRegistry

import sb3_trl
from sb3_trl.deployment.formats import FORMATS

from .cases import CASES, OF_ONNX


class Exported(NamedTuple):
    """A model and its file."""

    case: Any
    model: Any
    policy: sb3_trl.ExportedPolicy


@pytest.fixture(autouse=True, scope="session")
def _operators_are_listed_once():
    """Torch makes the same list of a thousand operators for every ONNX file, which takes half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Return the model of a case and its file of a format; each is made once."""
    folder = tmp_path_factory.mktemp("exported")
    model = functools.cache(lambda name: CASES[name].model())

    @functools.cache
    def make(name: str, format_name: str) -> Exported:
        path = folder / f"{name}{FORMATS[format_name].suffix}"
        return Exported(CASES[name], model(name), sb3_trl.export(model(name), path, noise=name != "gsde"))

    return lambda name, format_name=None: make(name, format_name or ("onnx" if name in OF_ONNX else "torchscript"))
