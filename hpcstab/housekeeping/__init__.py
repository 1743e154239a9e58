"""What runs take on disk, and the removal of what is named of it; never the last healthy checkpoint."""
