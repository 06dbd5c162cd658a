"""Collect: sources to clips (`sources/`), clips to segments (`segment.py`)."""
