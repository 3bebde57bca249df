"""TensorBoard's folders and steps are those of SB3."""

import pytest
from stable_baselines3 import PPO
from support import ALGORITHMS, event_file, small, vec_env

from sb3_trl import TRPL, FixPO, LeanPPO, LeanTRPO

every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)


def folders(root) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


def steps(folder) -> list[int]:
    return [event.step for event in event_file(folder).Scalars("time/fps")]


@every_algorithm
@pytest.mark.parametrize("name", [None, "mine", "mine_1", "a_b_2"])
def test_folders(cls, name, tmp_path):
    """A new one for every training, unless it goes on; SB3's numbers behind the name."""
    found = []
    for each in (cls, PPO):
        root = tmp_path / each.__name__
        given = {} if name is None else {"tb_log_name": name}
        model = small(each, vec_env(2), tensorboard_log=str(root))
        listings = [folders(root)]
        for reset in (True, False, True, False):
            model.learn(16, reset_num_timesteps=reset, **given)
            listings.append([folder.replace(each.__name__.removeprefix("Lean"), "X") for folder in folders(root)])
        found.append(listings)
    own = "LeanX" if cls is LeanPPO else "X"
    assert found[0] == [[folder.replace("X", own) for folder in listing] for listing in found[1]]


@every_algorithm
def test_steps_go_on_without_a_reset(cls, tmp_path):
    for each in (cls, PPO):
        model = small(each, vec_env(2), tensorboard_log=str(tmp_path / each.__name__))
        model.learn(32, tb_log_name="run")
        model.learn(32, tb_log_name="run", reset_num_timesteps=False)
        model.learn(32, tb_log_name="run")
    ours, expected = ([steps(tmp_path / each.__name__ / f"run_{k}") for k in (1, 2)] for each in (cls, PPO))
    assert ours == expected == [[16, 32, 48, 64], [16, 32]]


@every_algorithm
def test_another_model_goes_on_in_the_newest_folder(cls, tmp_path):
    for reset in (True, False):
        small(cls, vec_env(2), tensorboard_log=str(tmp_path)).learn(16, tb_log_name="run", reset_num_timesteps=reset)
    assert folders(tmp_path) == ["run_1"]


@every_algorithm
def test_a_second_algorithm_has_a_folder_of_its_own(cls, tmp_path):
    for each in (cls, PPO):
        small(each, vec_env(2), tensorboard_log=str(tmp_path)).learn(16)
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("cls", [TRPL, FixPO, LeanPPO, LeanTRPO])
def test_tensorboard_runs_have_the_algorithms_name(tmp_path, cls):
    model = small(cls, tensorboard_log=str(tmp_path))
    model.learn(1)
    model.learn(1, tb_log_name="mine")
    assert {folder.name for folder in tmp_path.iterdir()} == {f"{cls.__name__}_1", "mine_1"}
