"""A run on this machine: its folder, who holds that, what is recorded in it, and signals to stop."""
