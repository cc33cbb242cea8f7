"""Damage of the database file: how it is found, and how what can be read is saved."""
