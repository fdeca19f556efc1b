"""Which connections exist: how many (allocation), which first (topology), and how they change (methods)."""
