"""siren: text-to-audio language models over residual codes (arXiv 2510.04577)."""

from siren import quiet

quiet.apply()

__version__ = "0.1.0"
