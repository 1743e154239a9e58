"""Variant expressions: one canonical form each, and errors that teach."""

from __future__ import annotations

import pytest

from hpcstab.config import load_experiment, parse_variant
from hpcstab.errors import ConfigError

SWAE3D = load_experiment("swae3d")


@pytest.mark.parametrize(
    ("expression", "canonical"),
    [
        ("before", "before"),
        ("before+clip", "before+clip"),
        ("before+clip+lower_lr", "before+lower_lr+clip"),  # YAML order, whatever was typed
        ("after-clip-batchnorm", "after-batchnorm-clip"),
        ("after-lower_lr+lower_lr", "after"),
        ("before+gdn_bounded-gdn_bounded", "before"),
        ("after-tensorboard_optional+repeated", "after+repeated-tensorboard_optional"),
    ],
)
def test_canonical_form(expression: str, canonical: str) -> None:
    variant = parse_variant(SWAE3D, expression)
    assert variant.name == canonical
    assert parse_variant(SWAE3D, canonical) == variant


def test_equal_fixes_have_one_name() -> None:
    """``before`` plus all fixes of ``after`` is ``after``: runs of one thing stand in one folder."""
    expression = "before" + "".join(f"+{fix}" for fix in SWAE3D.file.variants["after"])
    assert parse_variant(SWAE3D, expression).name == "after"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("befor", "did you mean 'before'"),
        ("before+clipp", "did you mean 'clip'"),
        ("before-clip", "not in it"),
        ("after+clip", "in it already"),
        ("before+clip+clip", "in it already"),
        ("", "is not an expression"),
        ("before + clip", "is not an expression"),
        ("before+clip\n", "is not an expression"),
        ("before+$(touch x)", "is not an expression"),
        ("../before", "is not an expression"),
    ],
)
def test_wrong_expressions_say_what_is_allowed(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_variant(SWAE3D, expression)
    assert caught.value.exit_code == 2
