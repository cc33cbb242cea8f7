"""How an operation becomes an answer: requests, retries, failures; written once for the sync and the async client."""
