"""Checks of the settings: service, address of the tasks, signing keys, secret key, results."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from qtasks.cli.operate.doctor.findings import CheckResult, Patient, fail, note, ok
from qtasks.errors import ConfigurationError
from qtasks.protocol import development
from qtasks.protocol.loopback import is_loopback_url
from qtasks.tasks.settings import DEVELOPMENT


def service(patient: Patient) -> CheckResult:
    """A service is configured."""
    settings = patient.settings
    if settings.url is None or settings.token is None:
        return fail(
            "no QStash service is configured",
            cause=f"looked for: {', '.join(settings.searched)}",
            fix="start `qtasks dev`, or set QSTASH_TOKEN (and QSTASH_URL for a broker of your own)",
        )
    if settings.token in {user.token for user in development.USERS} and not is_loopback_url(settings.url):
        return fail(
            f"the token for {settings.url} is a public development token",
            cause="every stranger knows it",
            fix="set QSTASH_TOKEN to a token of your account",
        )
    return ok(f"{settings.url} (from {settings.origin('url')}), token from {settings.origin('token')}")


def base_url(patient: Patient) -> CheckResult:
    """The service can reach the address of the tasks."""
    settings = patient.settings
    if settings.base_url is None:
        return note(
            "QTASKS_BASE_URL is not set",
            cause="calls cannot be sent without it",
            fix="set it to the public address of the tasks, prefix included",
        )
    is_local = is_loopback_url(settings.base_url)
    if settings.url is not None and is_local and not is_loopback_url(settings.url):
        return fail(
            f"{settings.base_url} is this machine, and {settings.url} is another one",
            cause="the service delivers to that address, where it finds itself",
            fix="set QTASKS_BASE_URL to an address that the service can reach",
        )
    if not is_local and urlsplit(settings.base_url).scheme == "http":
        return note(
            f"{settings.base_url} is not https",
            cause="deliveries are signed, but can be read on their way",
            fix="serve the tasks over https",
        )
    return ok(f"{settings.base_url} (from {settings.origin('base_url')})")


def signing_keys(patient: Patient) -> CheckResult:
    """The signing keys are set, differ, and are those of the service."""
    settings = patient.settings
    current, following = settings.current_signing_key, settings.next_signing_key
    if not current or not following:
        return note(
            "no signing keys",
            cause="this environment can send, and cannot run tasks",
            fix="set QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY; `qtasks keys show --reveal` prints them",
        )
    if current == following:
        return fail(
            "both signing keys are the same",
            cause="after the next rotation no delivery could be verified",
            fix="qtasks keys show --reveal",
        )
    if not settings.allow_dev_keys and (development.is_public(current) or development.is_public(following)):
        return fail(
            "the signing keys are the public development keys",
            cause="every stranger can sign deliveries",
            fix="qtasks keys show --reveal prints those of your account",
        )
    return ok(f"two, from {settings.origin('current_signing_key')}")


def keys_of_the_service(patient: Patient) -> CheckResult | None:
    """The signing keys here are those that the service signs with."""
    settings = patient.settings
    if not settings.current_signing_key or not settings.next_signing_key:
        return None
    keys = patient.service.client.signing_key.get()
    here = (settings.current_signing_key, settings.next_signing_key)
    if here == (keys.current, keys.next):
        return ok("the same as at the service")
    if keys.current not in here:
        return fail(
            "the service signs with another key",
            cause="the keys are those of another account, or they were rotated twice: every delivery is refused",
            fix="`qtasks keys show --reveal` prints the keys; put both into the environment of the application",
        )
    if here[0] == keys.next:
        return fail(
            "the two signing keys are swapped", cause="current and next have changed places", fix="exchange them"
        )
    return note(
        "the keys were rotated once; deliveries are accepted until the next rotation",
        fix="`qtasks keys show --reveal` prints the new pair",
    )


def secret_key(patient: Patient) -> CheckResult | None:
    """QTASKS_SECRET_KEY is long, and unknown to the broker."""
    if patient.settings.secret_key is None:
        return None
    count = len(patient.settings.encrypting())
    return ok("set" if count == 1 else f"{count} keys, the first one encrypts")


def results(patient: Patient) -> CheckResult:
    """A place for results is configured, and can be written."""
    url = patient.settings.results
    if url is None:
        return note(
            "none",
            cause="asking for the result of a call raises an error",
            fix="set QTASKS_RESULTS, such as sqlite:///results.db",
        )
    origin = patient.settings.origin("results")
    if not url.startswith("sqlite:///"):
        return ok(f"{url.partition(':')[0]} (from {origin}); not tried")
    path = Path(url.removeprefix("sqlite:///"))
    folder = path.parent
    if not folder.is_dir():
        raise ConfigurationError(f"results are to be in {path}, but there is no folder {folder}", fix=f"mkdir {folder}")
    return ok(f"{path} (from {origin})")


def development_file(patient: Patient) -> CheckResult | None:
    """`.qtasks/dev.json` is that of a `qtasks dev` that runs."""
    file = patient.folder / DEVELOPMENT
    if not file.is_file():
        return None
    if patient.settings.origin("url") == DEVELOPMENT:
        return ok("`qtasks dev` runs here")
    if patient.settings.token is not None:
        return note("`qtasks dev` was started here, and QSTASH_TOKEN names another service, which is used")
    return fail(
        f"{DEVELOPMENT} is left over: no broker answers there",
        cause="`qtasks dev` was killed",
        fix="start it again, or remove the file (`qtasks doctor --fix` does)",
        repair=lambda: _remove(file),
    )


def _remove(file: Path) -> str:
    file.unlink(missing_ok=True)
    return f"removed {file.name}"
