"""The broker on a socket: limits, raw paths, time limits, start and stop."""
