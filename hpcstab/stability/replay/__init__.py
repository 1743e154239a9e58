"""A failing step run again: capsules, who made the first non-finite value, what would have prevented it."""
