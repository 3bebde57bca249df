"""The papers' studies, read once."""

import pytest
import yaml

from sb3_trl.papers.scales import SCALES, paper_studies, scaled_study
from sb3_trl.study import Study


@pytest.fixture(scope="session")
def plans(tmp_path_factory):
    """Every study that comes with the package at every scale: (name, scale) → its plan."""
    folder, result = tmp_path_factory.mktemp("studies"), {}
    for name in sorted(paper_studies()):
        for scale in SCALES:
            content = scaled_study(name, scale)
            if content is not None:
                path = folder / f"{name}-{scale}.yml"
                path.write_text(yaml.safe_dump(content))
                result[name, scale] = Study.load(path).plan
    return result
