"""Replacements for the outside world in tests: a virtual clock, delivery faults, results that never block."""
