"""The gate: may the update of this step be applied? One decision on the device over all that a step changes."""
