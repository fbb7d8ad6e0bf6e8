from pathlib import Path

import pytest

from policyopt import registry

OWN = """
from policyopt.problems.control.point_mass import PointMass

def short():
    return PointMass(horizon=7)

class Tall(PointMass):
    horizon: int = 9
"""


def test_a_problem_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    assert registry.problem(f"{tmp_path}/mine.py:short").horizon == 7
    assert registry.problem(f"{tmp_path}/mine.py:Tall").name == "point-mass"
    with pytest.raises(ValueError, match=r"problem in .*mine\.py.*'shor' is not known; did you mean 'short'"):
        registry.problem(f"{tmp_path}/mine.py:shor")
    with pytest.raises(ValueError, match=r"no file 'other\.py' for a problem; .* has mine\.py"):
        registry.problem(f"{tmp_path}/other.py:short")
    with pytest.raises(ValueError, match="takes no rewards"):
        registry.problem(f"{tmp_path}/mine.py:short", rewards="rewards.py:right")
