"""The planted defects still fit the code that they are planted into; `make test-mutants` shows that
each is caught."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest


@pytest.mark.parametrize("defect", mutants.DEFECTS, ids=lambda d: d.name)
def test_a_defect_can_be_planted(defect: mutants.Defect, tmp_path: Path) -> None:
    mutants.plant(defect, tmp_path)
    planted = (tmp_path / "holdfast" / defect.file).read_text()
    assert planted != (mutants.ROOT / "src" / "holdfast" / defect.file).read_text()
