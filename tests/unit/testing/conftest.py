"""Tests of the plugin use it: `qtasks` is the environment of `qtasks_app`, which each module says."""

from collections.abc import Iterator

import pytest

from qtasks import QTasks


@pytest.fixture
def tasks() -> Iterator[QTasks]:
    """An application without tasks, for a test to fill."""
    with QTasks() as made:
        yield made


@pytest.fixture
def qtasks_app(tasks: QTasks) -> QTasks:
    return tasks
