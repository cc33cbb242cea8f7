"""Serve the application of a user: in this process, or in child processes on a socket that they inherit."""
