"""The application behind ``from qtasks import task``, for programs that need only one."""

from qtasks.tasks.app import QTasks

default_app = QTasks()
"""Configured by the environment alone."""

task = default_app.task
"""``@task``: as `QTasks.task`, on the default application."""

cron = default_app.cron
"""``@cron``: as `QTasks.cron`, on the default application."""

every = default_app.every
"""``@every``: as `QTasks.every`, on the default application."""
