"""Encode: segments and captions to token shards (`tokenize.py`), and their reader (`tokens.py`)."""
