"""Schedules as code: the declaration, the difference to the service, the sync, the handle."""
