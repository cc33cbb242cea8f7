"""Calls that follow one another: chains, groups and chords."""
