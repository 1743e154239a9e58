"""The gate in a loop that is not ours: ``harden`` and ``replay``."""
