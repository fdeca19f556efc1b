"""What came out of runs, side by side: a table, plots, and a report."""
