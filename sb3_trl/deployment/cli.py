"""``sb3-trl export``: find an agent as ``sb3-trl enjoy`` does, and write its policy to a file."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName

from sb3_trl.deployment.export import export
from sb3_trl.deployment.exported import ExportedPolicy
from sb3_trl.deployment.formats import FORMATS

__all__ = ["main"]


def main() -> None:
    """Write the policy of the agent that the arguments name."""
    arguments = _parser().parse_args()
    for package in arguments.gym_packages:
        importlib.import_module(package)
    model, folder = load(arguments)
    path = arguments.output or folder / f"{EnvironmentName(arguments.env)}{FORMATS[arguments.format].suffix}"
    exported = export(
        model,
        path,
        arguments.format,
        vec_normalize=None if arguments.normalization else False,
        noise=arguments.noise,
        image_layout=arguments.image_layout,
    )
    model.get_env().close()
    print(_summary(exported))


def load(arguments: argparse.Namespace) -> tuple[Any, Path]:
    """Return the agent with its environments, and the folder where it is.

    :param arguments: Of the command.
    """
    import rl_zoo3.import_envs  # noqa: F401  registers environments
    from rl_zoo3 import ALGOS, create_test_env, get_saved_hyperparams
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import get_model_path

    name = EnvironmentName(arguments.env)
    choice = (arguments.load_best, arguments.load_checkpoint, arguments.load_last_checkpoint)
    _, model_path, log_path = get_model_path(arguments.exp_id, arguments.folder, arguments.algo, name, *choice)
    settings = Path(log_path, name)
    hyperparams, stats_path = get_saved_hyperparams(str(settings), test_mode=True)
    env = create_test_env(
        name.gym_id,
        stats_path=stats_path,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=_env_kwargs(settings / "args.yml", hyperparams) | (arguments.env_kwargs or {}),
        vec_env_cls=ExperimentManager.default_vec_env_cls,
    )
    # Schedules are of no use here, and may have been pickled by another version of Python.
    schedules = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = ALGOS[arguments.algo].load(model_path, env=env, custom_objects=schedules, device="cpu")
    return model, Path(log_path)


def _env_kwargs(path: Path, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Return what the environment was made with: on the command line, else in the file of settings."""
    import yaml

    of_file = hyperparams.pop("env_kwargs", None) or {}
    given = yaml.load(path.read_text(), Loader=yaml.UnsafeLoader).get("env_kwargs") if path.is_file() else None
    return dict(given or of_file)


def _summary(exported: ExportedPolicy) -> str:
    """Return what the file takes and gives, what is inside and what is not, a line for each."""
    known, lines = exported.metadata, [f"Exported to {exported.path}"]
    for way in ("inputs", "outputs"):
        for port in known[way]:
            shape = ", ".join(map(str, port["shape"]))
            lines.append(f"  {way[:-1]:7} {port['name']}: {port['dtype']} ({shape}), {port['meaning']}")
    inside, outside = known["inside"], known["outside"]
    has = [f"normalisation of {', '.join(inside['normalization'])}"] if inside["normalization"] else []
    has += [f"{name} divided by 255" for name in inside["images_divided_by_255"]]
    has += [f"{name} one-hot" for name in inside["one_hot"]]
    lines.append(f"  inside  {'; '.join([*has, 'actions ' + inside['action']])}")
    left = [f"stacking of {outside['frame_stack']} frames"] if outside["frame_stack"] > 1 else []
    left += outside["wrappers"]
    return "\n".join([*lines, *([f"  outside {'; '.join(left)}"] if left else [])])


def _parser() -> argparse.ArgumentParser:
    from rl_zoo3.utils import StoreDict

    parser = argparse.ArgumentParser(
        description="Write the policy of a trained agent to a file that runs without this package: observations as the "
        "environment gives them in, actions as it takes them out."
    )
    parser.add_argument("--algo", default="trpl", help="algorithm (default: trpl)")
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("-f", "--folder", default="logs", help="folder of agents (default: logs)")
    parser.add_argument("--exp-id", type=int, default=0, help="run (default: 0, the latest; -1: no folder of its own)")
    parser.add_argument("--load-best", action="store_true", help="the best model of the evaluations")
    parser.add_argument("--load-checkpoint", type=int, help="the model saved after this many steps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="the last model of those saved on the way")
    parser.add_argument("--format", choices=list(FORMATS), default="onnx", help="default: onnx")
    parser.add_argument("-o", "--output", type=Path, help="the file (default: beside the model, named by the task)")
    parser.add_argument("--noise", action="store_true", help="draw actions, with noise as an input")
    parser.add_argument(
        "--normalization",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put the normalisation of observations into the file, if there is one (default)",
    )
    parser.add_argument("--image-layout", choices=["HWC", "CHW"], help="order of images (default: the environment's)")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="modules that register environments")
    parser.add_argument("--verbose", type=int, default=1, help="2 shows the traceback of an error")
    return parser
