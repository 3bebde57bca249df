"""What a TensorBoard log holds beside the curves: the dashboard's layout and the hyperparameters."""

import inspect
import random
import re
from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from support import all_equal, event_file, make_model, parameters, vec_env
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, StateBound, TRPLPolicy, TrustRegionCallback
from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.monitoring.dashboard import CHARTS, METRICS, DashboardCallback, hyperparameters
from sb3_trl.projections import KLProjection

SMALL = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}


def layout(events) -> dict[str, list[str]]:
    """Return the regular expressions of every chart of the dashboard."""
    (text,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    (category,) = Layout.FromString(text).category
    assert category.title == "Trust region"
    return {chart.title: list(chart.multiline.tag) for chart in category.chart}


def drawn(events) -> dict[str, set[str]]:
    """Return the curves that TensorBoard draws in every chart: those that the run has."""
    tags = events.Tags()["scalars"]
    return {
        title: {tag for tag in tags if any(re.match(p, tag) for p in patterns)}
        for title, patterns in layout(events).items()
    }


def session(events) -> dict[str, object]:
    """Return the hyperparameters of the HParams tab."""
    data = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    kinds = {"string_value": str, "number_value": float, "bool_value": bool}
    values = data.session_start_info.hparams
    return {key: kinds[kind](getattr(x, kind)) for key, x in values.items() if (kind := x.WhichOneof("kind"))}


@pytest.fixture(scope="module", params=["TRPL", "FixPO"])
def run(request, tmp_path_factory):
    """The events of a short run, and the model."""
    folder = tmp_path_factory.mktemp("runs")
    env = vec_env(2)
    if request.param == "TRPL":
        model = make_model(env, tensorboard_log=folder, entropy_schedule="exp", policy_kwargs={"init_std": 0.5})
    else:
        model = FixPO("MlpPolicy", env, tensorboard_log=folder, learning_rate="lin_1e-3", **SMALL)
    model.learn(256)
    return event_file(folder / f"{request.param}_1"), model


def test_every_chart_of_a_run_has_lines(run):
    events, model = run
    charts = drawn(events)
    assert charts.keys() <= CHARTS.keys()
    assert all(charts.values())
    if isinstance(model, TRPL):
        kl = {"trust_region/kl_mean", "trust_region/kl_max", "trust_region/kl_bound"}
        assert not any("FixPO" in title for title in charts)
        distances = {f"trust_region/{part}_{key}" for part in ("mean", "cov") for key in ("distance_max", "bound")}
        assert distances <= set.union(*charts.values())
        assert charts["Entropy (nats)"] == {"trust_region/entropy", "trust_region/entropy_bound"}
    else:
        kl = {"trust_region/kl_mean", "trust_region/kl_max", "fixpo/kl_max", "fixpo/kl_bound"}
        assert charts["FixPO: penalty weight β"] == {"fixpo/beta"}
        assert charts["FixPO: steps of the fixup phase"] == {"fixpo/fixup_steps"}
    assert charts["KL divergence from the old policy (nats)"] == kl
    assert "trust_region/violation_fraction" in charts["Share of states projected, and outside"]


def test_charts_draw_the_keys_they_name_and_no_others(run):
    for title, patterns in layout(run[0]).items():
        assert all(re.match(p, key) for p, key in zip(patterns, CHARTS[title], strict=True))
        assert not any(re.match(p, f"{key}_more") for p in patterns for key in CHARTS[title])


def test_all_algorithms_share_charts(run, tmp_path):
    """TensorBoard merges the layouts of all runs and drops a chart that it has seen: equal charts must be equal."""
    model = PPO("MlpPolicy", vec_env(2), tensorboard_log=tmp_path, **SMALL)
    model.learn(384, callback=TrustRegionCallback())
    events = event_file(tmp_path / "PPO_1")
    assert set(layout(events)) == {"KL divergence from the old policy (nats)", "Entropy (nats)"}
    assert layout(events).items() <= layout(run[0]).items()
    assert all(drawn(events).values())


def test_hyperparameters_of_a_run(run):
    events, model = run
    values = session(events)
    assert values.items() >= {"n_steps": 64, "batch_size": 32, "gamma": 0.99, "n_envs": 2, "seed": 0}.items()
    assert values["algorithm"] == type(model).__name__
    if isinstance(model, TRPL):
        expected = {"learning_rate": 1e-4, "projection": "kl", "trust_region_coef": 8, "policy/init_std": 0.5}
        assert values.items() >= {**expected, "entropy_schedule": "exp", "hard": False}.items()
    else:
        assert values.items() >= {"learning_rate": "lin_1e-3", "kl_bound": 0.5, "beta_init": 1}.items()
    assert "tensorboard_log" not in values


def test_metrics_of_a_run(run):
    content = run[0].SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == set(METRICS)
    assert {key for key in METRICS if key.startswith("trust_region/")} <= set(run[0].Tags()["scalars"])


def test_the_console_and_the_last_log_stay_as_they_were(run):
    assert all(isinstance(value, (int, float)) for value in run[1].logger.name_to_value.values())


def test_values_that_are_no_numbers():
    kwargs = {"mean_bound": StateBound(lambda x: x[:, 0].abs()), "cov_bound": lambda progress: 1e-3 * progress}
    values = hyperparameters(make_model(**kwargs, policy_kwargs={"net_arch": {"pi": [8], "vf": [8]}}))
    assert (values["mean_bound"], values["cov_bound"]) == ("StateBound", "0.001 to 0")
    assert values["policy/net_arch"] == "{'pi': [8], 'vf': [8]}"
    assert values["target_entropy"] == 0.0
    assert values["entropy_schedule"] is None


def test_nothing_is_written_without_a_tensorboard_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model().learn(64)
    assert not list(tmp_path.iterdir())


# --- whatever a user gives ---


class Unprintable:
    """Has no description of its own."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Counting:
    """A schedule that changes with every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, progress: float) -> float:
        self.calls += 1
        return 1e-3 / self.calls


class HandsOn(TRPL):
    """Keeps one of its arguments, and hands on what it does not know."""

    def __init__(self, *args, gain=1, forgotten=2, train=3, secret=4, **kwargs):
        self.gain = gain
        super().__init__(*args, **kwargs)

    @property
    def secret(self):
        raise RuntimeError("no")


class Chooses(FixPO):
    """Takes the environment, and chooses everything else."""

    def __init__(self, env, tensorboard_log=None):
        super().__init__("MlpPolicy", env, kl_bound=0.3, tensorboard_log=tensorboard_log, **SMALL)


class OwnPolicy(TRPLPolicy):
    """Takes anything."""

    def __init__(self, *args, thing=None, **kwargs):
        super().__init__(*args, **kwargs)


def reentrant() -> dict:
    loop: dict = {}
    loop["self"] = loop["again"] = loop
    return loop


def refuses(progress: float) -> float:
    raise RuntimeError("no")


THINGS = [
    (Unprintable(), "Unprintable"),
    ([1, Unprintable()], "[1, Unprintable]"),
    ({"a": {"b": (nn.Tanh, None)}}, "{'a': {'b': (Tanh, None)}}"),
    (reentrant(), None),
    ("x" * 10_000, "x" * 499 + "…"),
    (["x" * 10_000] * 10_000, None),
    ("\ud800", "?"),
    (10**400, None),
    (10**5000, None),
    (2**70, 2.0**70),
    (float("nan"), float("nan")),
    (float("inf"), float("inf")),
    (None, None),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.longdouble(0.5), 0.5),
    (np.str_("text"), "text"),
    (np.arange(3), "[0, 1, 2]"),
    (np.zeros((10, 10, 10)), "ndarray (10, 10, 10)"),
    (th.tensor(0.5), 0.5),
    (th.tensor([1.0, 2.0], requires_grad=True), "[1.0, 2.0]"),
    (nn.Linear, "Linear"),
    (partial(nn.LeakyReLU, negative_slope=0.2), "LeakyReLU(negative_slope=0.2)"),
    (partial(nn.Softplus, 2), "Softplus(2)"),
    (lambda inplace=False: nn.ReLU(inplace), "<lambda>"),
    (lambda size: nn.Linear(int(size), 2), "<lambda>"),
    (refuses, "refuses"),
    (Counting(), "Counting"),
    (FloatSchedule(LinearSchedule(0.5, 0.0, 1.0)), "0.5 to 0"),
    (KLProjection(), "KLProjection(mean_bound=0.03, cov_bound=0.001, kl_bound=0.01)"),
]


@pytest.mark.parametrize(("thing", "expected"), THINGS, ids=[type(thing).__name__ for thing, _ in THINGS])
def test_everything_finds_a_description(tmp_path, thing, expected):
    """As an argument of the policy, in which whatever is given is kept; and TensorBoard takes the description."""
    model = make_model(policy=OwnPolicy, policy_kwargs={"thing": thing, "init_std": 0.5})
    described = hyperparameters(model)["policy/thing"]
    assert type(described) in (bool, int, float, str, type(None))
    assert len(str(described)) <= 500
    if expected is not None or thing is None:
        assert (
            described == pytest.approx(expected, nan_ok=True) if isinstance(expected, float) else described == expected
        )
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    callback = DashboardCallback(model.log_prefixes)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    values = session(event_file(tmp_path))
    assert values.items() >= {"policy/init_std": 0.5, "n_steps": 64, "projection": "kl"}.items()
    assert ("policy/thing" in values) == (described is not None)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (lambda progress: np.float32(0.25), 0.25),
        (lambda progress: th.tensor(progress), "1 to 0"),
        (lambda progress: [progress], "<lambda>"),
        (lambda progress: np.ones(3), "<lambda>"),
        (lambda progress: None, "<lambda>"),
        (lambda progress, start=0.5: start * progress, "0.5 to 0"),
        (partial(pow, 4.0), "4 to 1"),
        (refuses, "refuses"),
        (lambda progress: 1 / progress, "<lambda>"),
    ],
)
def test_functions_of_one_number_are_schedules_if_they_return_numbers(schedule, expected):
    model = make_model()
    model.ent_coef = schedule
    assert hyperparameters(model)["ent_coef"] == expected


def test_arguments_that_a_subclass_hands_on_are_recorded(tmp_path):
    model = HandsOn("MlpPolicy", vec_env(), gain=5, cov_bound=0.25, tensorboard_log=tmp_path, **SMALL)
    model.learn(64)
    values = session(event_file(tmp_path / "TRPL_1"))
    expected = {"gain": 5, "cov_bound": 0.25, "learning_rate": 1e-4, "n_steps": 64, "algorithm": "HandsOn"}
    assert values.items() >= expected.items()
    assert not {"forgotten", "train", "secret", "args", "kwargs"} & values.keys()


def test_arguments_that_a_subclass_chooses_are_recorded(tmp_path):
    Chooses(vec_env(), tmp_path).learn(64)
    values = session(event_file(tmp_path / "FixPO_1"))
    assert values.items() >= {"kl_bound": 0.3, "n_steps": 64, "gamma": 0.99}.items()


def test_what_a_subclass_of_the_base_class_hands_on_is_recorded():
    class Own(TrustRegionAlgorithm):
        name, batch_size, n_epochs, compile = "Own", 32, 1, False
        policy_aliases = TRPL.policy_aliases

        def __init__(self, *args, **kwargs):
            super().__init__(*args, use_sde=False, sde_sample_freq=-1, **kwargs)

    kwargs = {"learning_rate": 0.5, "n_steps": 64, "gamma": 0.9, "gae_lambda": 1, "ent_coef": 0, "vf_coef": 0.5}
    values = hyperparameters(Own("MlpPolicy", vec_env(), max_grad_norm=1, **kwargs))
    assert values.items() >= kwargs.items()


def test_the_hyperparameters_are_those_of_the_algorithm_and_no_others():
    """SB3's base classes have more, which an algorithm may not use."""
    arguments = inspect.signature(TRPL).parameters.keys()
    keys = {key for key in hyperparameters(make_model()) if not key.startswith("policy/")}
    assert keys - {"algorithm", "policy", "n_envs"} <= arguments


@pytest.mark.parametrize("cls", [TRPL, FixPO, PAPI, LeanPPO])
def test_a_log_does_not_change_the_training(tmp_path, cls):
    """Also where a schedule counts its calls, or draws random numbers."""

    def trained(folder):
        count = 0

        def schedule(progress: float) -> float:
            nonlocal count
            count += 1
            return 1e-3 / count * (1 + random.random() + np.random.random() + th.rand(1).item())  # noqa: NPY002

        model = cls("MlpPolicy", vec_env(2), learning_rate=schedule, tensorboard_log=folder, **SMALL)
        model.learn(256)
        return parameters(model), count

    (with_log, calls), (without, expected_calls) = trained(tmp_path), trained(None)
    assert calls == expected_calls
    assert all_equal(with_log, without)
