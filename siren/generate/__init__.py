"""From prompts to sound: the sampler, and the bundle of everything that it needs on disk."""
