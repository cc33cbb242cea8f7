"""Parked messages: in which lots they wait, and how many of each lot may start."""
