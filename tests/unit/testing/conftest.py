"""Tests of the pytest plugin use the plugin: the fixture `qtasks` tests the application `qtasks_app`."""

from collections.abc import Iterator

import pytest

from qtasks import QTasks


@pytest.fixture
def tasks() -> Iterator[QTasks]:
    """An application without tasks; the test adds them."""
    with QTasks() as made:
        yield made


@pytest.fixture
def qtasks_app(tasks: QTasks) -> QTasks:
    return tasks
