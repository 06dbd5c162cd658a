"""What the performance tables are made with; each file is a script, run from the root."""
