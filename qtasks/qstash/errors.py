"""The errors of the client, under the module name of the official package. `qtasks.errors` defines them."""

from qtasks.errors import (
    ApiError,
    BrokerUnreachable,
    ChatRateLimitExceededError,
    DailyMessageLimitExceededError,
    InvalidCallError,
    QStashError,
    RateLimitExceededError,
    SignatureError,
)

__all__ = [
    "ApiError",
    "BrokerUnreachable",
    "ChatRateLimitExceededError",
    "DailyMessageLimitExceededError",
    "InvalidCallError",
    "QStashError",
    "RateLimitExceededError",
    "SignatureError",
]
