"""docs/guides/django.md, done as its reader does it: its files are a Django project, with real servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import page_code
from tests.support.dev import Dev
from tests.support.process import Process, ask
from tests.support.servers import free_port

PAGE = (page_code.DOCS / "guides" / "django.md").read_text(encoding="utf-8")
SETTINGS = {"DJANGO_SETTINGS_MODULE": "mysite.settings"}


class Django(Process):
    """A command of the project's `manage.py`, as a process."""

    program = (sys.executable, "-m", "django")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, with a database."""
    folder = tmp_path_factory.mktemp("django")
    page_code.write_files(PAGE, folder)
    for line in ("makemigrations shop", "migrate"):
        assert f"python manage.py {line}" in PAGE
        manage(folder, *line.split())
    return folder


def manage(project: Path, *arguments: str) -> str:
    done = page_code.run("-m", "django", *arguments, folder=project, timeout_s=60, **SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def place_order(origin: str) -> int:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = ask("POST", f"{origin}/orders", body=b"email=ada%40example.com", headers=form)
    assert answer.status == 201, answer.body
    return int(answer.json["order"])


def is_charged(origin: str, order: int) -> bool:
    return bool(ask("GET", f"{origin}/orders/{order}").json["is_charged"])


@pytest.fixture
def site(project: Path) -> Iterator[str]:
    """Django's own server; its origin."""
    port = free_port()
    with Django(project, "runserver", "--noreload", str(port), **SETTINGS) as server:
        server.wait_for("Quit the server")
        yield f"http://127.0.0.1:{port}"
        server.stop()


def test_views_call_tasks_that_a_dispatcher_runs_with_the_models(project: Path, site: str) -> None:
    with Dev(project, "dispatcher.py") as dev:
        dev.started()
        order = place_order(site)
        dev.wait_for("charged ada@example.com")
        assert is_charged(site, order)
        call = ask("POST", f"{site}/orders/{order}/charge", body=b"").json["call"]
        assert call.startswith("call_")
        dev.wait_for("charged ada@example.com")
        dev.stop()


def test_one_process_serves_django_and_runs_the_tasks(project: Path) -> None:
    with Dev(project, "mysite/asgi.py") as dev:
        origin = str(dev.started()["base_url"]).removesuffix("/qtasks")
        order = place_order(origin)
        dev.wait_for("charged ada@example.com")
        assert is_charged(origin, order)
        dev.stop()


def test_the_tests_of_the_page_pass(project: Path) -> None:
    assert "python manage.py test shop.tests" in PAGE
    assert "Ran 2 tests" in (shown := manage(project, "test", "shop.tests"))
    assert "OK" in shown
