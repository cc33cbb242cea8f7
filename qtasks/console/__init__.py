"""The console outside the broker's own server: in a FastAPI application, or before any QStash service."""

from qtasks.console.mounted_console import console_router

__all__ = ["console_router"]
