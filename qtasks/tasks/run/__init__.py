"""A delivery on its way in: verify, decode, run the function, decide what its end means, answer."""
