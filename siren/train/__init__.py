"""Training: the frozen neighbours at small sizes, and stage 1 of the model. One loop a file."""
