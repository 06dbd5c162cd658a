"""A listening test of any systems' sounds: people rank blinded clips, and what they say has intervals (paper, 5.4)."""
