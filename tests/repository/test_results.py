"""The study files behind the results can be run."""

import pytest
from support import ROOT, unknown_hyperparameters

from sb3_trl.study import Study

FILES = sorted((ROOT / "docs" / "results").glob("*.yml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_a_study_whose_hyperparameters_are_those_of_its_algorithms(path):
    study = Study.load(path)
    assert study.runs
    assert unknown_hyperparameters(study.plan) == {}
