"""A small shop whose orders are charged, reminded of and reported by tasks. Its tests are in `test_shop.py`."""

from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI

from qtasks import NonRetryable, QTasks, RetryPolicy

tasks = QTasks()
app = FastAPI()
app.include_router(tasks.router, prefix="/qtasks")


class Bank:
    """A service of another company."""

    async def take(self, order: int, cents: int) -> str:
        """Take money for an order. Returns the receipt."""
        raise NotImplementedError("tests do not call the bank")


class Mailer:
    """Sends mails."""

    def send(self, to: str, text: str) -> None:
        """Send one mail."""
        raise NotImplementedError("tests send no mails")


async def get_bank() -> AsyncIterator[Bank]:
    yield Bank()


def get_mailer() -> Mailer:
    return Mailer()


@app.post("/orders/{order}")
async def place_order(order: int, cents: int, email: str) -> dict[str, str]:
    charged = await charge.adelay(order, cents)
    await remind.using(delay="3d", label="reminder").adelay(email, order)
    return {"charge": charged.id}


@tasks.task(retries=RetryPolicy(max=3, initial="10s", give_up_on=ValueError))
async def charge(order: int, cents: int, bank: Bank = Depends(get_bank)) -> str:
    if cents <= 0:
        raise NonRetryable("there is nothing to pay")
    receipt = await bank.take(order, cents)
    await confirm.adelay(order, receipt)
    return receipt


@tasks.task
def confirm(order: int, receipt: str, mailer: Mailer = Depends(get_mailer)) -> None:
    mailer.send(f"customer of {order}", f"paid: {receipt}")


@tasks.task
def remind(email: str, order: int, mailer: Mailer = Depends(get_mailer)) -> None:
    mailer.send(email, f"how do you like order {order}?")


@tasks.cron("0 9 * * MON", tz="Europe/Berlin")
def report(mailer: Mailer = Depends(get_mailer)) -> None:
    mailer.send("boss", "the week")
