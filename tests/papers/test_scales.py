"""The papers' studies are valid and fair, at every scale."""

import pytest
from support import unknown_hyperparameters

pytest.importorskip("rl_zoo3")

from sb3_trl.papers.scales import Part, paper_studies, scaled_study, seconds
from sb3_trl.report.random_policy import shipped_returns
from sb3_trl.study import Study

STUDIES = sorted(paper_studies())


@pytest.mark.parametrize("name", STUDIES)
def test_the_file_as_it_is_is_a_study(name):
    assert Study.load(paper_studies()[name]).runs


def test_every_study_runs_at_the_papers_scale(plans):
    assert {name for name, scale in plans if scale == "paper"} == set(STUDIES)


def test_hyperparameters_are_those_of_the_algorithm(plans):
    """Where one file serves two algorithms, all that it says has to mean something to both."""
    for plan in plans.values():
        assert unknown_hyperparameters(plan) == {}, plan.description.name


def test_methods_of_a_task_observe_the_same(plans):
    """Ant: 27 numbers for all, or 105."""
    for plan in plans.values():
        for task in plan.description.tasks:
            groups = [group for group in plan.groups if group.runs[0].task == task]
            kwargs = [str(group.runs[0].hyperparameters.get("env_kwargs")) for group in groups]
            assert len(set(kwargs)) == 1, (plan.description.name, task)


def test_random_returns_of_every_task_are_known(plans):
    tasks = {task for plan in plans.values() for task in plan.description.tasks}
    assert tasks <= shipped_returns().keys()


def test_a_scale_changes_what_it_says_and_nothing_else():
    paper, small = scaled_study("trpl_mujoco", "paper"), scaled_study("trpl_mujoco", "small")
    assert paper["methods"] == small["methods"]
    assert (paper["seeds"], small["seeds"]) == (40, 3)
    smoke = scaled_study("fixpo_mujoco", "smoke")
    assert smoke["tasks"] == ["Walker2d-v5"]
    assert all(method["tasks"] == ["Walker2d-v5"] for method in smoke["methods"].values())
    assert smoke["methods"]["C_beta=1"]["params"]["kl_target_coef"] == 1
    assert scaled_study("trpl_humanoid", "small") is None


def test_estimates_of_time_know_that_metaworld_is_slow():
    """A million steps of one run on one core are seven minutes or so."""
    one = seconds([Part("fixpo_metaworld", ("FixPO",), ("sb3_trl/MetaWorldReach-v0",))], "small") / 3
    assert 300 < one < 700
    assert seconds([Part("fixpo_mujoco", ("FixPO",), ("Walker2d-v5",))], "small") / 3 < 200
