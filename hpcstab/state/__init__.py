"""What a run is doing, from all that was written about it: one rule for every reader; torch-free."""
