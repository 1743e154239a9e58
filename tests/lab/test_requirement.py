"""Where no lab can be: a test that needs one is skipped, unless the lab is required."""

from __future__ import annotations

import pytest

from tests.lab import running_lab
from tests.lab.running_lab import lab_for_tests


@pytest.mark.parametrize(
    ("required", "outcome", "line"),
    [
        ("0", pytest.skip.Exception, "no lab: it needs root"),
        ("1", pytest.fail.Exception, "HPCSTAB_REQUIRE_LAB=1, and no lab: it needs root"),
    ],
)
def test_a_lab_that_is_required_is_not_skipped(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException], line: str
) -> None:
    monkeypatch.setattr(running_lab, "why_no_lab", lambda: "no lab: it needs root")
    monkeypatch.setenv("HPCSTAB_REQUIRE_LAB", required)
    with pytest.raises(outcome, match=f"^{line}$"), lab_for_tests():
        pass
