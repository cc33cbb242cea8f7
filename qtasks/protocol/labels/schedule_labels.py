"""The labels of the schedules that the framework makes, and of their runs."""

from __future__ import annotations

from typing import Final

DECLARED: Final = "qtasks-schedule"
"""The code declares the schedule."""
DYNAMIC: Final = "qtasks-schedule-dynamic"
"""A running program made it."""
