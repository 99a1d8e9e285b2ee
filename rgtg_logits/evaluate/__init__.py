"""How good guided texts are, and what they cost in divergence and time: the body of `rgtg evaluate`."""
