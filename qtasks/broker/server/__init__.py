"""Serving the broker over HTTP: sockets, limits on size and time, raw paths, start and stop."""
