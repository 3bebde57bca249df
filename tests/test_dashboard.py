"""What a TensorBoard log holds beside the curves: the dashboard's layout and the hyperparameters."""

import re

import pytest
from stable_baselines3 import PPO
from support import event_file, make_model, vec_env
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import plugin_data_pb2

from sb3_trl import TRPL, FixPO, StateBound, TrustRegionCallback
from sb3_trl.dashboard import CHARTS, METRICS, hyperparameters

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
        assert values.items() >= {"learning_rate": "0.001 to 0", "kl_bound": 0.5, "beta_init": 1}.items()
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
