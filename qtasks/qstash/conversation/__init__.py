"""How the client runs an operation: requests, retries and errors, written once for the sync and the async client."""
