"""Writing a deployed policy in each of the formats, and reading one back."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch as th
from torch import Tensor

from sb3_trl.deployment.deployed import DeployedPolicy
from sb3_trl.deployment.description import KEY

__all__ = ["FORMATS", "Format", "format_of"]

#: Maps inputs in order to outputs in order.
Run: TypeAlias = Callable[[list[np.ndarray]], list[np.ndarray]]

INSTALL = 'pip install "sb3-trl[export]"'


class Format(NamedTuple):
    """One format.

    :param suffix: Of its files.
    :param write: Writes a policy, with its metadata as JSON, to a path.
    :param read: Returns a function that runs the file at a path, and its metadata as JSON.
    """

    suffix: str
    write: Callable[[DeployedPolicy, str, Path], None]
    read: Callable[[Path], tuple[Run, str]]


def format_of(path: Path, name: str | None = None) -> str:
    """Return the format of a file.

    :param path: Where it is, or will be.
    :param name: The format, where it is given.
    :raises ValueError: if there is no such format, or the path's suffix is another.
    """
    allowed = ", ".join(f"{known!r} ({known_format.suffix})" for known, known_format in FORMATS.items())
    if name is None:
        found = [known for known, known_format in FORMATS.items() if known_format.suffix == path.suffix]
        if not found:
            raise ValueError(f"{str(path)!r} does not say in which format: its suffix may be that of {allowed}.")
        return found[0]
    if name not in FORMATS:
        raise ValueError(f"format={name!r} is unknown: choose one of {allowed}.")
    if path.suffix != FORMATS[name].suffix:
        raise ValueError(f"{str(path)!r}: files with format={name!r} end in {FORMATS[name].suffix!r}.")
    return name


# --- ONNX ---


def check_onnx() -> None:
    """Check that what ONNX needs is installed.

    :raises ImportError: if it is not.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"format='onnx' needs {', '.join(missing)}: {INSTALL}")


def write_onnx(deployed: DeployedPolicy, metadata: str, path: Path) -> None:
    """Write an ONNX file, all weights inside."""
    check_onnx()
    import onnx

    names = [[port.name for port in ports] for ports in (deployed.inputs, deployed.outputs)]
    with _quiet():
        th.onnx.export(
            deployed,
            deployed.example(3),
            path,
            input_names=names[0],
            output_names=names[1],
            dynamic_shapes=_dynamic(deployed),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: metadata})
    onnx.save(model, path)


def read_onnx(path: Path) -> tuple[Run, str]:
    """Return what runs an ONNX file, and its metadata."""
    check_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # more are slower in networks this small
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        return session.run(None, dict(zip(names, inputs, strict=True)))

    return run, session.get_modelmeta().custom_metadata_map.get(KEY, "")


# --- TorchScript ---


def write_torchscript(deployed: DeployedPolicy, metadata: str, path: Path) -> None:
    """Write a TorchScript file by tracing."""
    with _quiet():
        program = th.jit.trace(deployed, deployed.example(3), check_trace=False)
        th.jit.save(program, str(path), _extra_files={KEY: metadata})


def read_torchscript(path: Path) -> tuple[Run, str]:
    """Return what runs a TorchScript file, and its metadata."""
    files: dict[str, Any] = {KEY: ""}
    with _quiet():
        program = th.jit.load(str(path), map_location="cpu", _extra_files=files)
    text = files[KEY]
    return _run(program), text.decode() if isinstance(text, bytes) else text


# --- torch.export ---


def write_torch(deployed: DeployedPolicy, metadata: str, path: Path) -> None:
    """Write a program of ``torch.export``."""
    with _quiet():
        program = th.export.export(deployed, deployed.example(3), dynamic_shapes=_dynamic(deployed))
        th.export.save(program, path, extra_files={KEY: metadata})


def read_torch(path: Path) -> tuple[Run, str]:
    """Return what runs a program of ``torch.export``, and its metadata."""
    files: dict[str, Any] = {KEY: ""}
    with _quiet():
        program = th.export.load(path, extra_files=files)
        return _run(program.module()), files[KEY]


def _run(program: Callable[..., Any]) -> Run:
    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        with th.no_grad():
            outputs = program(*map(th.as_tensor, inputs))
        tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        return [tensor.numpy() for tensor in tensors]

    return run


def _dynamic(deployed: DeployedPolicy) -> tuple[tuple[dict[int, Any], ...]]:
    """Say that every input's first axis is the batch."""
    return (tuple({0: th.export.Dim("batch")} for _ in deployed.inputs),)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch's exporters say of themselves: that they are deprecated, or lack other packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


FORMATS = {
    "onnx": Format(".onnx", write_onnx, read_onnx),
    "torchscript": Format(".pt", write_torchscript, read_torchscript),
    "torch": Format(".pt2", write_torch, read_torch),
}


def dumps(metadata: dict[str, Any]) -> str:
    """Return metadata as JSON."""
    return json.dumps(metadata, allow_nan=False)
