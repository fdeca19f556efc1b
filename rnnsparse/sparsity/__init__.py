"""Which connections exist: how many (allocation), which ones (selection), and how they change (methods)."""
