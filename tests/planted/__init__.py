"""Planted bugs: one-line sabotages of the product, each of which a folder of tests must catch."""
