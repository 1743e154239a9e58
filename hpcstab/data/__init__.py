"""Data: seeded synthetic generators, fetching of real data, checks."""
