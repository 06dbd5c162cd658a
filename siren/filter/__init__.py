"""Filter: captions, their scores, the splits, and the gate that everything must pass."""
