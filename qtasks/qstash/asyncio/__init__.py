"""The asynchronous client, under the module names of the official package."""
