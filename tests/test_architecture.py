"""The house: who may import whom, nothing heavy at start, no cycles, no grab-bag modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "hpcstab"

# Torch-free rooms, in order: each may import those left of it.
LINE = [
    "errors",
    "units",
    "seeds",
    "config",
    "metrics",
    "rundir",
    "campaign",
    "identity",
    "interventions",
    "judgement",
    "state",
    "task",
]
MAY_IMPORT: dict[str, set[str]] = {
    **{room: set(LINE[:index]) for index, room in enumerate(LINE)},
    "data": {"errors", "config", "seeds", "task"},
    "checkpoint": {"errors", "rundir"},
    "stability": {"errors", "metrics", "checkpoint"},
    "doctor": {"errors", "checkpoint"},
    "quality": {"errors", "stability"},
    "models": {"errors", "config", "seeds", "task", "data", "quality", "stability"},
    "training": {"errors", "seeds", "config", "metrics", "rundir", "judgement", "task", "stability", "checkpoint"},
    "execute": {*LINE, "data", "checkpoint", "stability", "models", "training"},
    "rerun": {*LINE, "checkpoint", "doctor", "execute", "training"},
    "launch": {
        "errors",
        "seeds",
        "config",
        "campaign",
        "identity",
        "rundir",
        "metrics",
        "judgement",
        "state",
        "execute",
    },
    # reads what a run wrote; other verbs (replay, doctor) are asked in processes of their own
    "explain": {"errors", "units", "config", "metrics", "rundir", "identity", "interventions", "judgement", "state"},
    # the only room that removes something of a run; checkpoint, for whether one is whole
    "housekeeping": {"errors", "rundir", "state", "checkpoint"},
    "report": {
        "errors",
        "config",
        "campaign",
        "identity",
        "metrics",
        "rundir",
        "interventions",
        "judgement",
        "state",
    },
    "cli": {*LINE, "data", "doctor", "execute", "rerun", "launch", "report", "explain", "housekeeping"},
}
HEAVY = {"torch", "pandas", "matplotlib", "scipy", "submitit", "PIL", "jinja2", "nibabel", "nrrd", "monai"}
HEAVY_ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in LINE},
    "data": {"torch", "scipy", "PIL", "nibabel", "nrrd"},
    "checkpoint": {"torch"},
    "stability": {"torch"},
    "doctor": {"torch"},
    "quality": {"torch"},
    "models": {"torch", "monai"},
    "training": {"torch", "PIL"},
    "execute": {"torch"},
    "rerun": {"torch"},
    "launch": {"submitit"},
    "explain": set(),
    "housekeeping": set(),
    "report": {"pandas", "matplotlib", "scipy", "jinja2"},
    "cli": set(),
}
ONLY_IN_FUNCTIONS = {("launch", "execute"), ("execute", "training"), ("housekeeping", "checkpoint")}
"""Imports that must not happen when the importing module is loaded: they bring torch."""


class Import(NamedTuple):
    file: Path
    line: int
    module: str
    in_function: bool


def imports_of(path: Path, *, for_types: bool = False) -> Iterator[Import]:
    """Every import that can happen at run time; those under TYPE_CHECKING cannot, and are left out or ``for_types``."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not for_types:
                continue
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
                yield from (Import(path, child.lineno, name, inside) for name in names)
            else:
                yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def all_imports() -> list[tuple[str, Import]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            found += [(room, entry) for entry in imports_of(path)]
    return found


def where(entry: Import) -> str:
    return f"{entry.file.relative_to(REPOSITORY)}:{entry.line} imports {entry.module}"


def test_every_file_is_in_a_room() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__", "__main__", "__pycache__", "py.typed"}
    assert rooms == set(MAY_IMPORT), "a new room needs a row in DESIGN 3 and in this table"


def test_rooms_import_only_what_the_table_allows() -> None:
    wrong = []
    for room, entry in all_imports():
        parts = entry.module.split(".")
        if parts[0] == "hpcstab" and len(parts) > 1 and parts[1] not in (room, "__version__"):
            if parts[1] not in MAY_IMPORT[room]:
                wrong.append(where(entry))
        elif parts[0] in HEAVY - HEAVY_ALLOWED[room]:
            wrong.append(where(entry))
    assert not wrong, "\n".join(wrong)


def test_what_loads_torch_is_imported_inside_functions_only() -> None:
    wrong = [
        where(entry)
        for room, entry in all_imports()
        if entry.module.startswith("hpcstab.")
        and (room, entry.module.split(".")[1]) in ONLY_IN_FUNCTIONS
        and not entry.in_function
    ]
    wrong += [
        where(entry)
        for room, entry in all_imports()
        if room == "cli"
        and not entry.in_function
        and entry.module.startswith("hpcstab.")
        and not entry.module.startswith(("hpcstab.cli", "hpcstab.errors", "hpcstab.units", "hpcstab.__version__"))
    ]
    assert not wrong, "\n".join(wrong)


def test_models_do_not_import_each_other() -> None:
    wrong = []
    for room, entry in all_imports():
        if room == "models" and entry.module.startswith("hpcstab.models."):
            own = entry.file.relative_to(PACKAGE / "models").parts[0]
            if entry.module.split(".")[2] != own:
                wrong.append(where(entry))
        if (
            room in ("models", "quality")
            and entry.module.startswith("hpcstab.stability.")
            and ".numerics" not in entry.module
        ):
            wrong.append(where(entry))
    assert not wrong, "\n".join(wrong)


def test_modules_have_no_import_cycle() -> None:
    """Imports inside functions and for types count too: they hide a cycle, they do not undo it."""
    modules = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {entry.module for entry in imports_of(path, for_types=True)}
        known = {target if target in modules else target.rpartition(".")[0] for target in targets}
        graph[name] = {target for target in known if target in modules and target != name}
    TopologicalSorter(graph).prepare()  # raises CycleError and names the cycle


def test_no_grab_bag_modules() -> None:
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "misc", "common_utils"}


def test_nobody_imports_the_command() -> None:
    wrong = [where(entry) for room, entry in all_imports() if room != "cli" and entry.module.startswith("hpcstab.cli")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("statement", ["import hpcstab", "import hpcstab.cli.app", "import hpcstab.launch.queue"])
def test_start_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print(*sorted(set(sys.modules) & {HEAVY - {'submitit'}!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == ""
