"""What commands about a run are made of: how it is named from here, and the four ways to go on."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from hpcstab.explain.causes import Cause
from hpcstab.explain.facts import Facts

_DEFAULT_ROOT = Path("runs")


@dataclass(frozen=True)
class Command:
    """``line`` is what to type; ``why`` what it does, in a few words."""

    line: str
    why: str


@dataclass(frozen=True)
class Case:
    """A run and its first cause."""

    facts: Facts
    cause: Cause

    @property
    def root(self) -> str:
        """The option for its root, where that is not the default."""
        root = self.facts.run.path.parents[2]
        return "" if root.resolve() == _DEFAULT_ROOT.resolve() else f" --root {shlex.quote(str(root))}"

    @property
    def run(self) -> str:
        """How a command names the run from here."""
        return f"{self.facts.run.path.name}{self.root}"

    @property
    def model(self) -> str:
        return str(self.facts.identity.get("model"))

    @property
    def variant(self) -> str:
        return str(self.facts.identity.get("variant"))

    @property
    def gate(self) -> str:
        return str((self.facts.config.get("stability") or {}).get("gate"))

    def rerun(self, options: str, why: str, source: str = "healthy") -> Command:
        """A new run from a checkpoint of this one."""
        return Command(f"hpcstab rerun {self.run} --from {source}{options}", why)

    def start(self, variant: str, why: str, options: str = "") -> Command:
        """From step 0, where this run was started: as a job, or here."""
        identity = self.facts.identity
        sets = (
            f" --set {shlex.quote(f'{key}={_yaml(value)}')}" for key, value in identity.get("overrides", {}).items()
        )
        scale, seed = identity.get("scale"), identity.get("seed")
        rest = f"{''.join(sets)}{options}{self.root}"
        if self.facts.seen.ledger is None:
            return Command(f"hpcstab train {self.model}@{variant} --scale {scale} --seed {seed}{rest}", why)
        return Command(f"hpcstab submit {self.model} --variants {variant} --seeds {seed} --scale {scale}{rest}", why)

    def changed(self, options: str, why: str) -> Command:
        """With something set otherwise: from its last healthy checkpoint, or from step 0 where there is none."""
        return self.rerun(options, why) if self.facts.last_healthy else self.start(self.variant, why, options)

    def go_on(self, why: str) -> Command:
        """The same training, from where it was saved last; on Slurm as a new job."""
        if self.facts.seen.ledger is None or self.facts.seen.ledger.slurm is None:
            return Command(f"hpcstab train --resume {self.run}", why)
        return self.rerun("", why, "last") if self.facts.last_healthy else self.start(self.variant, why)


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
