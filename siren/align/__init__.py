"""Stage 2, anti-causal alignment (paper section 4.2): `objective` is the mathematics, `anticausal` the loop."""
