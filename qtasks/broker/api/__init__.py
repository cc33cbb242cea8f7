"""The HTTP API of the wire, thin: a handler parses, calls one verb, replies."""
