"""The asynchronous twins, under the module names of the official package."""
