"""The QStash-compatible server. Knows the protocol, never the client or the framework."""
