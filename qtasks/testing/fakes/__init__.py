"""What tests put in the place of the world: a virtual clock, faults on the way, results that never block."""
