"""``hpcstab list``: the models, their fixes and why."""

from __future__ import annotations

from hpcstab.cli.options import AsJson, Configs
from hpcstab.cli.terminal import print_json, print_table


def list_models(configs: Configs = None, as_json: AsJson = False) -> None:
    """Models, their variants, fixes and why."""
    from hpcstab.config import distinct_variants, load_experiment, model_names, variant_names

    experiments = [load_experiment(name, configs) for name in model_names(configs)]
    if as_json:
        print_json({experiment.name: experiment.file.model_dump(mode="json") for experiment in experiments})
        return
    for experiment in experiments:
        file = experiment.file
        print(f"{experiment.name}: {file.about}")
        print(f"  variants {', '.join(variant_names(experiment))}   scales {', '.join(file.scales)}\n")
        variants = {name: file.variants.get(name, ()) for name in distinct_variants(experiment)}
        users = {fix: [name for name, fixes in variants.items() if fix in fixes] for fix in file.fixes}
        print_table(
            ("fix", "kind", "in", "why"),
            [(name, fix.kind, ", ".join(users[name]), fix.why) for name, fix in file.fixes.items()],
        )
