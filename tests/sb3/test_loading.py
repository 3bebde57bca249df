"""Saving and loading with all that SB3 offers, for every algorithm: what PPO does on the same call is done."""

import io
import pathlib

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize
from support import ALGORITHMS, PointEnv, all_equal, parameters, small, vec_env

every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)


@pytest.fixture(scope="module", params=ALGORITHMS, ids=lambda cls: cls.__name__)
def saved(request, tmp_path_factory):
    """A trained model and its file, and PPO's."""
    pairs = []
    for each in (request.param, PPO):
        path = tmp_path_factory.mktemp("models") / "model.zip"
        model = small(each, vec_env(2), learning_rate=1e-2).learn(48)
        model.save(path)
        pairs.append((model, path))
    return pairs


def both(saved, call):
    """Return what a call makes of a model and its file, and of PPO's: its result, or the kind of its error."""
    results = []
    for model, path in saved:
        try:
            results.append(call(type(model), model, path))
        except Exception as error:
            results.append(type(error))
    return results


def test_files_and_folders(saved, tmp_path):
    """A path as a string or a ``Path``, with and without its ending, in a new folder, or an open file."""

    def call(cls, model, path):
        found = []
        for k, name in enumerate(("a", "b.zip", "c.pkl", "new/folder/d")):
            target = tmp_path / cls.__name__ / name
            model.save(str(target) if k % 2 else target)
            folder = target.parent
            found.append(sorted(file.name for file in folder.iterdir() if file.is_file()))
            assert all_equal(parameters(cls.load(target, device="cpu")), parameters(model))
        buffer = io.BytesIO()
        model.save(buffer)
        buffer.seek(0)
        assert all_equal(parameters(cls.load(buffer, device="cpu")), parameters(model))
        with open(tmp_path / "open", "wb") as file:
            model.save(file)
        with open(tmp_path / "open", "rb") as file:
            assert all_equal(parameters(cls.load(file, device="cpu")), parameters(model))
        return found

    ours, expected = both(saved, call)
    assert ours == expected
    assert isinstance(ours, list)


def test_files_that_are_not_there(saved, tmp_path):
    for name in ("nothing", "nothing.zip"):
        ours, expected = both(saved, lambda cls, model, path, name=name: cls.load(tmp_path / name))
        assert ours is expected is FileNotFoundError
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    ours, expected = both(saved, lambda cls, model, path: cls.load(tmp_path / "broken.zip"))
    assert ours is expected


def test_what_is_in_a_file(saved, tmp_path):
    """What is excluded and included, and nothing that PPO does not save but for the algorithm's own."""

    def call(cls, model, path):
        kinds = []
        for kwargs in ({}, {"exclude": ["ent_coef", "nonsense"]}, {"include": ["_custom_logger"]}):
            model.save(tmp_path / "model", **kwargs)
            data, params, variables = load_from_zip_file(tmp_path / "model.zip", device="cpu")
            kinds.append(
                {
                    key: key in data
                    for key in ("ent_coef", "_custom_logger", "policy", "env", "rollout_buffer", "device")
                }
            )
            assert {"policy", "policy.optimizer"} <= params.keys()
            assert not variables
        return kinds

    ours, expected = both(saved, call)
    assert ours == expected
    assert isinstance(ours, list)


def test_an_excluded_argument_is_the_default_again(saved, tmp_path):
    (model, _), _ = saved
    other = small(type(model), gae_lambda=0.5)
    other.save(tmp_path / "model", exclude=["gae_lambda"])
    assert type(model).load(tmp_path / "model", device="cpu").gae_lambda == small(type(model)).gae_lambda == 0.95


def test_environments_on_loading(saved):
    """None, another number, one that is not vectorised, and one that does not fit."""

    def call(cls, model, path):
        loaded = cls.load(path, device="cpu")
        found = [loaded.get_env(), loaded.n_envs]
        for env in (PointEnv(), vec_env(3), vec_env(2), VecNormalize(vec_env(2))):
            loaded = cls.load(path, env=env, device="cpu")
            loaded.learn(24, reset_num_timesteps=False)
            found += [
                loaded.n_envs,
                loaded.num_timesteps,
                loaded.rollout_buffer.n_envs,
                loaded.get_vec_normalize_env() is env,
            ]
        return found

    ours, expected = both(saved, call)
    assert ours == expected
    assert isinstance(ours, list)
    for env in (vec_env(2, shape=(2,)), vec_env(2, observation="dict")):
        ours, expected = both(saved, lambda cls, model, path, env=env: cls.load(path, env=env, device="cpu"))
        assert ours is expected is ValueError


def test_learning_without_an_environment_is_refused(saved):
    ours, expected = both(saved, lambda cls, model, path: cls.load(path, device="cpu").learn(8))
    assert ours is expected is AssertionError


@pytest.mark.parametrize("force_reset", [True, False])
def test_the_last_observation(saved, force_reset):
    """Is forgotten with a new environment, unless the user says otherwise; and the environment is reset once."""

    class ResetCounter(PointEnv):
        resets = 0

        def reset(self, **kwargs):
            ResetCounter.resets += 1
            return super().reset(**kwargs)

    def call(cls, model, path):
        loaded = cls.load(path, env=vec_env(2, ResetCounter), device="cpu", force_reset=force_reset)
        found = [loaded._last_obs is None]
        env = vec_env(2, ResetCounter, length=1000)
        loaded.set_env(env, force_reset=force_reset)
        found.append(loaded._last_obs is None)
        env.reset()
        ResetCounter.resets = 0
        loaded.learn(8, reset_num_timesteps=False)
        found.append(ResetCounter.resets)
        loaded.learn(8, reset_num_timesteps=False)
        return [*found, ResetCounter.resets]

    ours, expected = both(saved, call)
    assert ours == expected == [force_reset, force_reset, 2 * force_reset, 2 * force_reset]


def test_set_env(saved):
    def call(cls, model, path):
        loaded = cls.load(path, env=vec_env(2), device="cpu")
        env = VecNormalize(vec_env(2))
        loaded.set_env(env)
        return [
            loaded.get_env() is env,
            loaded.get_vec_normalize_env() is env,
            loaded.n_envs,
            loaded.learn(16).num_timesteps,
        ]

    ours, expected = both(saved, call)
    assert ours == expected == [True, True, 2, 16]
    for wrong, error in (
        (vec_env(3), AssertionError),
        (vec_env(2, shape=(2,)), ValueError),
        (PointEnv(), AssertionError),
    ):
        ours, expected = both(saved, lambda cls, model, path, env=wrong: model.set_env(env))
        assert ours is expected is error


def test_custom_objects_and_system_information(saved, capsys):
    def call(cls, model, path):
        changed = {"learning_rate": 0.5, "ent_coef": 0.25, "nonsense": 1}
        loaded = cls.load(path, env=vec_env(2), device="cpu", custom_objects=changed, print_system_info=True)
        printed = capsys.readouterr().out
        loaded.learn(16)
        learning_rate = loaded.policy.optimizer.param_groups[0]["lr"]
        return loaded.ent_coef, learning_rate, "nonsense" in vars(loaded), printed.count("Stable-Baselines3:")

    ours, expected = both(saved, call)
    assert ours == expected == (0.25, 0.5, False, 2)


def test_arguments_on_loading(saved):
    def call(cls, model, path):
        kwargs = {"n_steps": 4, "ent_coef": 0.25, "tensorboard_log": None, "verbose": 0, "seed": 3, "batch_size": 4}
        loaded = cls.load(path, env=vec_env(2), device="cpu", **kwargs)
        assert all(getattr(loaded, key) == value for key, value in kwargs.items())
        return loaded.rollout_buffer.buffer_size, loaded.learn(8).num_timesteps

    ours, expected = both(saved, call)
    assert ours == expected == (4, 8)
    for policy_kwargs in ({"net_arch": [5]}, {}):
        ours, expected = both(
            saved, lambda cls, model, path, given=policy_kwargs: cls.load(path, device="cpu", policy_kwargs=given)
        )
        assert ours is expected is ValueError


@every_algorithm
@pytest.mark.parametrize(
    "given", [1e-3, 1, lambda progress: 1e-3 * progress, "lin_1e-3"], ids=["float", "int", "function", "lin"]
)
def test_the_learning_rate_stays_what_was_given(cls, given, tmp_path):
    """Also after saving and loading: people read it, log it, and hand it to the next model."""
    names = ["learning_rate"] + [
        name for name in ("critic_learning_rate", "mean_bound", "clip_range_vf") if hasattr(small(cls), name)
    ]
    model = small(cls, **dict.fromkeys(names, given))
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=vec_env(), device="cpu")
    for m in (model, loaded):
        m.learn(8)
        for name in names:
            kept = getattr(m, name)
            if name == "clip_range_vf" and issubclass(cls, PPO):
                assert kept(0.5) == pytest.approx(given if not callable(given) and not isinstance(given, str) else 5e-4)
            elif callable(given):
                assert kept(0.5) == 5e-4
                assert m is loaded or kept is given
            else:
                assert (type(kept), kept) == (type(given), given)
    rates = [m.policy.optimizer.param_groups[0]["lr"] for m in (model, loaded)]
    assert rates[0] == rates[1]


def test_parameters_as_a_dictionary_and_a_file(saved):
    def call(cls, model, path):
        given = model.get_parameters()
        for source in (given, path, str(path), pathlib.Path(path)):
            other = small(cls, vec_env(2), seed=1)
            assert not all_equal(parameters(other), parameters(model))
            other.set_parameters(source, device="cpu")
            assert all_equal(parameters(other), parameters(model))
        with open(path, "rb") as file:
            other.set_parameters(file, device="cpu")
        moments = other.get_parameters()["policy.optimizer"]["state"]
        assert moments.keys() == given["policy.optimizer"]["state"].keys()
        return {"policy", "policy.optimizer"} <= given.keys()

    ours, expected = both(saved, call)
    assert ours is expected is True


def test_parameters_that_do_not_match(saved):
    """Missing and superfluous names, layers and shapes: the same error, or none with ``exact_match=False``."""

    def changed(model, change) -> dict:
        given = {name: dict(state) for name, state in model.get_parameters().items()}
        change(given)
        return given

    changes = [
        lambda given: given.pop("policy.optimizer"),
        lambda given: given.pop("policy"),
        lambda given: given.update(nonsense={}),
        lambda given: given["policy"].pop("value_net.bias"),
        lambda given: given["policy"].update(nonsense=th.zeros(2)),
        lambda given: given["policy"].update({"value_net.bias": th.zeros(5)}),
        lambda given: given.update({key: {} for key in given}),
        lambda given: given.clear(),
    ]
    for change in changes:
        for exact_match in (True, False):

            def call(cls, model, path, change=change, exact_match=exact_match):
                other = small(cls, vec_env(2), seed=1)
                other.set_parameters(changed(model, change), exact_match=exact_match, device="cpu")
                return True

            ours, expected = both(saved, call)
            assert ours is expected


def test_part_of_the_parameters(saved):
    def call(cls, model, path):
        other = small(cls, vec_env(2), seed=1)
        before = parameters(other)
        bias = {"value_net.bias": th.full((1,), 7.0)}
        other.set_parameters({"policy": bias}, exact_match=False, device="cpu")
        after = parameters(other)
        return {key for key in after if not th.equal(after[key], before[key])}

    ours, expected = both(saved, call)
    assert ours == expected == {"value_net.bias"}


def test_a_tensorboard_folder_is_saved_and_can_be_left_behind(saved, tmp_path):
    def call(cls, model, path):
        folder = tmp_path / cls.__name__
        logged = small(cls, vec_env(2), tensorboard_log=str(folder))
        logged.learn(16, tb_log_name="run")
        logged.save(tmp_path / "model")
        kept = cls.load(tmp_path / "model", env=vec_env(2), device="cpu")
        kept.learn(16, tb_log_name="run", reset_num_timesteps=False)
        cls.load(tmp_path / "model", env=vec_env(2), device="cpu", tensorboard_log=None).learn(16)
        return kept.tensorboard_log == str(folder), sorted(file.name for file in folder.iterdir())

    ours, expected = both(saved, call)
    assert ours == expected == (True, ["run_1"])


def test_the_policy_alone(saved, tmp_path):
    def call(cls, model, path):
        for target in (tmp_path / "policy", str(tmp_path / "policy.zip")):
            model.policy.save(target)
            policy = type(model.policy).load(target, device="cpu")
            assert all_equal(policy.state_dict(), model.policy.state_dict())
            assert type(policy) is type(model.policy)
        observation = np.ones(3, np.float32)
        actions = [m.predict(observation, deterministic=True)[0].tolist() for m in (policy, model)]
        return actions[0] == actions[1], policy.training

    ours, expected = both(saved, call)
    assert ours == expected
    assert ours[0] is True


def test_progress_goes_on_where_it_was(saved):
    """``num_timesteps``, statistics of episodes and numbers of updates are those that were saved."""

    def call(cls, model, path):
        loaded = cls.load(path, env=vec_env(2), device="cpu")
        found = [loaded.num_timesteps, len(loaded.ep_info_buffer or ()), loaded._n_updates]
        assert found == [model.num_timesteps, len(model.ep_info_buffer or ()), model._n_updates]
        loaded.learn(16, reset_num_timesteps=False)
        assert (loaded._n_updates, loaded.num_timesteps) == (model._n_updates * 4 // 3, 64)
        loaded.learn(16)
        return loaded.num_timesteps

    ours, expected = both(saved, call)
    assert ours == expected == 16
