"""A hot folder: judges image files as they arrive, exactly once, and writes a table."""
