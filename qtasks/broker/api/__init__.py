"""The HTTP API: each handler reads a request, calls one store verb and builds the response."""
