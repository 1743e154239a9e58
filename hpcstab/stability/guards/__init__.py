"""Guards: what the host reads of applied steps a little later, verdicts, and the ladder that they climb."""
