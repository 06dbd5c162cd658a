"""How the field measures generated sound, what the codes and the model look like inside, and the report."""
