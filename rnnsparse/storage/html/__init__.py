"""A model as one page for a browser: its network runs in it, and nothing of it or of what is typed goes anywhere."""
