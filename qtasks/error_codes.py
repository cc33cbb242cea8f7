"""Every error code, each for one situation, with its cause and what to do about it.

``qtasks explain QT301`` prints an entry. An error carries its code as `QTasksError.code`; dead letters and logs show it
too. A number is never used again for another situation. The first digit says where to look: 1 the code of the tasks,
2 configuration and signatures, 3 the QStash service, 4 the run of a call and its result, 5 the broker's store,
6 the command line.
"""

from __future__ import annotations

from enum import StrEnum, unique
from typing import Self


@unique
class ErrorCode(StrEnum):
    """One situation; a member is equal to its number as text (``"QT301"``)."""

    cause: str
    """One sentence: what has happened."""
    fix: str
    """One sentence: what to do."""

    def __new__(cls, number: str, cause: str, fix: str) -> Self:
        """A member of three texts."""
        member = str.__new__(cls, number)
        member._value_ = number
        member.cause = cause
        member.fix = fix
        return member

    @property
    def title(self) -> str:  # type: ignore[override]  # `str.title` is of no use for a code
        """The name of the situation in words, such as ``broker unreachable``."""
        return self.name.replace("_", " ").lower()

    # The formatter would give each number a line of its own.
    # fmt: off
    UNSPECIFIED = ("QT000",
        "An error of qtasks has no code of its own.",
        "Read the message of the error.")

    # 1: the code of the tasks
    DECLARATION_INVALID = ("QT101",
        "A task, router or schedule is declared in a way that cannot work, for example under a name already taken.",
        "Change the declaration as the message says.")
    NOT_A_FUNCTION = ("QT102",
        "A task decorator was applied to something that cannot be a task, such as a class or a generator.",
        "Put the decorator directly above a plain function or, where allowed, an async function.")
    TYPE_NOT_SERIALIZABLE = ("QT103",
        "A parameter or the result of a task has a type that JSON cannot carry, or that cannot be resolved.",
        "Use plain data or a pydantic model, and import every annotated type at the top of the module.")
    CRON_INVALID = ("QT104",
        "A cron expression or an interval cannot be read.",
        "Correct the part that the caret points at, or write every(...) with one of the listed intervals.")
    CRON_NEVER_DUE = ("QT105",
        "A cron expression names a date that never occurs, such as 30 February.",
        "Correct the day or the month.")
    TIME_ZONE_UNKNOWN = ("QT106",
        "A time zone is unknown.",
        "Write an IANA name such as Europe/Berlin.")
    INJECTION_INVALID = ("QT107",
        "A parameter is declared as injected but is not a TaskContext, or is a TaskContext without `= injected`.",
        "Write `ctx: TaskContext = injected`.")
    PARAMETER_OF_A_REQUEST = ("QT108",
        "A parameter of a task is one that only a request has, such as Header(), Request or BackgroundTasks.",
        "Pass plain values as arguments, and take what belongs to the delivery in a dependency.")
    CELERY_NAME = ("QT109",
        "The code uses a name of Celery, Dramatiq or RQ that qtasks spells otherwise, or does not have.",
        "Write what the message says; docs/migrate/index.md leads to the names of each queue with ours.")
    NOT_A_TASK = ("QT110",
        "Something that is not a task was given to BackgroundTasks, which sends the calls of tasks.",
        "Put @tasks.task above the function, or use fastapi.BackgroundTasks for functions that run in the process.")
    ARGUMENT_MISSING = ("QT151",
        "A call lacks an argument that the task requires.",
        "Pass the argument, or give the parameter a default.")
    ARGUMENT_UNEXPECTED = ("QT152",
        "A call has an argument that the task does not take.",
        "Compare the call with the signature in the message.")
    ARGUMENT_TYPE_WRONG = ("QT153",
        "An argument does not fit the type that its parameter declares.",
        "Pass a value of the declared type.")
    ARGUMENT_NOT_JSON = ("QT154",
        "An argument cannot be written as JSON, or not without a change.",
        "Pass plain data, or declare a type that pydantic can write.")
    CALL_TOO_LARGE = ("QT155",
        "The arguments of a call, or the request to a language model, exceed the size limit of a message.",
        "Store the data elsewhere and pass its key.")
    OPTION_INVALID = ("QT156",
        "An option of a task, call or schedule is unknown, invalid, or contradicts another option.",
        "Change the option that the message names.")
    GET_WOULD_BLOCK = ("QT157",
        "`.get()` was called on the event loop that has to run the task, so it would wait for ever.",
        "Write `await result.aget()`.")
    FLOW_INVALID = ("QT158",
        "A flow contains something that cannot be a part of it, has an option that a flow has not, or nests too deep.",
        "Build it of single calls made with .s(...) or .si(...); give options to a call: task.using(...).s(...).")
    MODEL_OUTPUT_TYPE_INVALID = ("QT159",
        "The declared output of a language model task is not an object.",
        "Wrap the value in a pydantic model.")
    COMPLETION_INVALID = ("QT160",
        "The function for the completion of a language model task cannot be used, or there are two of them.",
        "Declare one function with @task.on_completion that takes the output first.")
    MODEL_MESSAGES_INVALID = ("QT161",
        "The function of a language model task did not return a list of chat messages.",
        "Return a list of messages made with system(...), user(...) and the other functions of qtasks.llm.")
    CALL_NOT_STORABLE = ("QT162",
        "A call to a language model does not fit into a header, and no result backend is configured to keep it.",
        "Set QTASKS_RESULTS, or store the data and pass its key.")
    CALL_ID_INVALID = ("QT163",
        "A task_id is not a valid call id.",
        "Use 1 to 128 visible ASCII characters.")
    CALL_NOT_CANCELLABLE = ("QT164",
        "A call cannot be cancelled by its id: the broker may have it under another one, and there are no results.",
        "Set QTASKS_RESULTS, or cancel through the handle that .delay() returned, after its batch was sent.")
    WAIT_DEADLOCKED = ("QT165",
        "All threads for tasks wait for the results of calls that wait for a thread, so none of them would ever end.",
        "Use a chain or a chord instead of waiting inside a task; or make one of them an async def, or add threads.")
    NO_TEST_BROKER = ("QT170",
        "A test sends a call, but no test broker is open for the application.",
        "Request the fixture `qtasks`, or set `qtasks_network = true` in the settings of pytest to use a real broker.")
    TEST_CALLS_ALREADY_RUNNING = ("QT171",
        "A task or a second thread asked the test broker to run calls while it was already running some.",
        "Wait for the result of the one call that the test needs.")
    TEST_NEVER_IDLE = ("QT172",
        "The test broker still has due or running calls after its limit of attempts or time.",
        "Look for a task that calls itself without end, or is retried without a delay.")
    TEST_MODE_WRONG = ("QT173",
        "The mode of the test environment does not support the operation.",
        "Choose another mode, or wait for the result.")
    TEST_ENVIRONMENT_CLOSED = ("QT175",
        "A test environment was used before it was opened or after it was closed.",
        "Use it inside `with Environment(app) as qtasks:`.")

    # 2: configuration and signatures
    SIGNATURE_URL_WRONG = ("QT201",
        "A delivery was signed for another URL than the one at which it arrived.",
        "Set QTASKS_BASE_URL to the public address of the tasks, and check what a proxy changes.")
    SIGNATURE_BODY_WRONG = ("QT202",
        "The body of a delivery is not the one that was signed.",
        "Verify the raw bytes of the request, before a framework or a proxy changes them.")
    SIGNATURE_KEY_WRONG = ("QT203",
        "Neither the current nor the next signing key made the signature of a delivery.",
        "Compare QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY with those of the broker.")
    SIGNATURE_EXPIRED = ("QT204",
        "The signature of a delivery has expired.",
        "Synchronise the clocks of both machines (NTP).")
    SIGNATURE_NOT_YET_VALID = ("QT205",
        "The signature of a delivery is not valid yet.",
        "Synchronise the clocks of both machines (NTP), or allow a larger tolerance.")
    SIGNATURE_ISSUER_WRONG = ("QT206",
        "The signature of a delivery names another issuer than Upstash.",
        "Make sure that only a QStash service sends requests to this URL.")
    SIGNATURE_MALFORMED = ("QT207",
        "The Upstash-Signature header of a request is missing or is not a valid token.",
        "Make sure that a QStash service sends the request and that no proxy removes the header.")
    SIGNING_KEYS_MISSING = ("QT208",
        "No usable signing keys are configured, so a delivery cannot be verified.",
        "Set QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY.")
    RESULTS_DISABLED = ("QT209",
        "An operation needs stored results, but no result backend is configured.",
        "Set QTASKS_RESULTS, for example to sqlite:///results.db.")
    PROVIDER_KEY_MISSING = ("QT210",
        "The API key of a language model provider is not set.",
        "Set the environment variable that the message names, or pass token=... to the provider.")
    SETTING_INVALID = ("QT211",
        "A setting is missing, cannot be read, or contradicts another setting.",
        "Set the value that the message names.")
    PACKAGE_MISSING = ("QT212",
        "An optional package is required but not installed.",
        "Install the extra that the message names.")
    DELIVERY_INTERCEPTED = ("QT220",
        "Something in the application, such as a middleware, has answered a delivery in place of the dispatcher.",
        "Let requests to the path of the tasks pass there: deliveries are signed, and the dispatcher verifies them.")
    LIFESPAN_NOT_RUN = ("QT221",
        "A task was called while no application that serves it had started, or Starlette does not run its lifespan.",
        "Include the router in the outermost application, or run the lifespan of the mounted one in it.")

    # 3: the QStash service
    SERVICE_FAILED = ("QT300",
        "A conversation with a QStash service failed.",
        "Read the message of the error.")
    BROKER_UNREACHABLE = ("QT301",
        "The QStash service did not answer: nothing listens at its address, or it took too long.",
        "Start it with `qtasks dev`, or check QSTASH_URL and the network.")
    REQUEST_REFUSED = ("QT302",
        "The QStash service answered a request with an error.",
        "Read the status and the words of the service in the message.")
    RATE_LIMIT_EXCEEDED = ("QT303",
        "Too many requests were sent to the QStash service in a short time.",
        "Wait until the limit is reset, or send calls in batches.")
    BATCH_PARTLY_REFUSED = ("QT304",
        "The broker accepted some calls of a batch and refused others.",
        "Look at `refused` of the error, and send those calls again once they are corrected.")
    BASE_URL_IS_LOCAL = ("QT306",
        "The hosted service cannot deliver to a QTASKS_BASE_URL that names this machine.",
        "Set QTASKS_BASE_URL to a public address, or use `qtasks dev`.")
    REQUEST_INVALID = ("QT307",
        "The arguments of a call to the client contradict each other or cannot be sent.",
        "Correct the argument that the message names; nothing was sent.")
    DAILY_LIMIT_EXCEEDED = ("QT308",
        "The daily message limit of the account is used up.",
        "Wait until the next day, or raise the limit of the account.")
    CHAT_LIMIT_EXCEEDED = ("QT309",
        "The request or token limit of a language model is used up for now.",
        "Wait until the limit is reset.")
    SCHEDULE_NOT_OURS = ("QT310",
        "A schedule belongs to another environment, or was not made by qtasks, and is not changed.",
        "Change it with the QTASKS_BASE_URL of its own environment, or with the program that made it.")
    SYNC_TARGET_UNSAFE = ("QT311",
        "Schedules are not written: a development program would write them to a production service.",
        "Use the credentials of `qtasks dev` here, and sync production from its deployment.")
    SCHEDULE_UNKNOWN = ("QT312",
        "There is no schedule of this name in the environment.",
        "Write one of the names that `qtasks schedules list` shows.")

    # 4: the run of a call and its result
    TASK_UNKNOWN = ("QT401",
        "There is no task of this name in the application.",
        "Correct the name, or deploy the application that declares the task.")
    PAYLOAD_INVALID = ("QT402",
        "The body of a delivery is not the envelope of a task call.",
        "Send calls with qtasks, and let both sides run compatible versions.")
    TASK_FAILED = ("QT403",
        "The task failed for good, after all its retries.",
        "Read `error` of the exception; the dead-letter queue keeps the message.")
    RESULT_TIMEOUT = ("QT404",
        "The call did not finish within the given time; it continues regardless.",
        "Wait longer, or check that the application runs and can be reached.")
    NON_RETRYABLE = ("QT405",
        "The task raised NonRetryable, so the broker does not try again.",
        "Correct what the task reports, then send the dead letter again.")
    RESULT_NOT_SERIALIZABLE = ("QT406",
        "The value that a task returned cannot be stored as its result: it is too large or does not fit the type.",
        "Return a value of the declared type, or store the data and return its key.")
    TASK_RAISED = ("QT407",
        "The task raised an exception; the broker tries again until the retries are used up.",
        "Read the traceback in the log of the application.")
    DISPATCHER_DRAINING = ("QT408",
        "The application is shutting down and takes no new calls; the broker tries again.",
        "Do nothing: the next attempt reaches the restarted application.")
    RETRY_REQUESTED = ("QT409",
        "The task asked to be tried again after a delay.",
        "Do nothing: the broker tries again after that delay.")
    ATTEMPT_TIMED_OUT = ("QT410",
        "An attempt took longer than the timeout of the task.",
        "Raise the timeout, make the task do less in one call, let a `def` check `ctx.should_stop`, or add threads.")
    CALL_CANCELLED = ("QT411",
        "The call was cancelled by its caller or by the task itself.",
        "Read `reason`; send the call again if it is still needed.")
    CALL_EXPIRED = ("QT412",
        "The call was still waiting when its `expires` had passed, so it did not run.",
        "Allow more time with `expires`, or add capacity.")
    RETRY_POLICY_GAVE_UP = ("QT413",
        "The retry policy of the task does not retry this exception.",
        "Correct the cause, or add the exception to the policy.")
    CALL_SNOOZED = ("QT414",
        "The call was snoozed and published again under the same call id.",
        "Do nothing: the new message runs the call later.")
    CALL_RUNNING_ELSEWHERE = ("QT415",
        "Another delivery of the same call is running; the broker tries this one again later.",
        "Do nothing: the later attempt gets the stored result.")
    PICKLE_FORGED = ("QT416",
        "A pickle was not read because no key of this application made its authentication code.",
        "Set the same QTASKS_SECRET_KEY in every process.")
    PICKLE_STALE = ("QT417",
        "A pickle was made by another version of Python, cloudpickle or the code, and cannot be read here.",
        "Run the same versions on both sides.")
    RUN_SKIPPED = (
        "QT418",
        'A run of a schedule with overlap="skip" was left out because an earlier run had not ended.',
        'Do nothing, or use overlap="wait" if every run counts.',
    )
    REQUEST_REPEATED = ("QT419",
        "The same signed request arrived before; nothing ran for this one.",
        "Do nothing if a proxy repeats requests; otherwise find out which program records and sends them again.")
    MODEL_FAILED = ("QT420",
        "The provider of a language model refused a request or did not answer it.",
        "Read `status` and `detail` of the error.")
    MODEL_OUTPUT_UNFIT = ("QT421",
        "The answer of a language model does not fit the declared output.",
        "Describe the output more precisely in the messages, or allow repairs.")
    MODEL_REFUSED = ("QT422",
        "The language model refused to answer.",
        "Change the messages.")
    CALLBACK_URL_INVALID = ("QT423",
        "The query of a callback URL is not one that a call to a language model has.",
        "Send such calls with qtasks only, and let both sides run compatible versions.")
    MODEL_CALL_LOST = ("QT424",
        "The answer of a language model arrived, but its call is neither in the header nor in the result backend.",
        "Keep results longer (QTASKS_RESULT_TTL), and use one result backend in every process.")
    MODEL_ANSWER_INVALID = ("QT425",
        "The provider answered with something that is not a chat completion.",
        "Check the URL and the model name of the provider.")
    MODEL_CALL_TAMPERED = ("QT426",
        "The call in a header is not the one whose digest stands in the signed URL.",
        "Check what a proxy does to the headers of deliveries.")
    CALLBACK_INVALID = ("QT427",
        "The body of a callback is not what a QStash service sends, or belongs to another call.",
        "Let only a QStash service send requests to this URL.")
    FAILURE_RECORDED = ("QT428",
        "The broker reported that a call failed, and the failure was recorded.",
        "Do nothing: this is the answer to the report of the broker.")
    ENVELOPE_TOO_NEW = ("QT429",
        "A call was sent by a newer version of qtasks than the one that received it.",
        "Upgrade qtasks where the tasks run.")
    RESULTS_UNREACHABLE = ("QT430",
        "The result backend cannot be reached.",
        "Check QTASKS_RESULTS, and that the database runs and can be reached.")
    RESULT_UNREADABLE = ("QT431",
        "A stored result does not fit the type that the task declares now.",
        "Restore the return annotation that the task had when it ran, or send the call again.")
    RESULTS_TOO_NEW = ("QT432",
        "The results file was written by a newer version of qtasks.",
        "Upgrade qtasks, or name another file.")
    CALL_UNKNOWN = ("QT433",
        "Neither the results nor the broker know a call with this id: it was never sent, or ended too long ago.",
        "Compare the id with that of the handle that .delay() returned; keep results longer with QTASKS_RESULT_TTL.")
    CALL_OF_ANOTHER_TASK = ("QT434",
        "A call id belongs to a call of another task.",
        "Give each call a task_id of its own; ask the task that made the call, or tasks.result(id), for its result.")
    ENCODING_UNEXPECTED = ("QT440",
        "Arguments or a result arrived in another form than their task declares: JSON, a codec, encrypted or not.",
        "Declare the same form at both ends; while that changes, name the other one in the task's `accepts`.")
    CODEC_FAILED = ("QT441",
        "A codec could not encode or decode a value, changed it, or made more of it than its limit allows.",
        "Correct the functions of the codec that the message names, or raise its `limit`.")
    ENCRYPTION_KEY_UNKNOWN = ("QT442",
        "Arguments or a result were encrypted with a key that this process does not have.",
        "Keep the earlier keys in QTASKS_SECRET_KEY, behind the new one, until nothing encrypted with them is left.")
    ENCRYPTION_FORGED = ("QT443",
        "What is encrypted was changed, or belongs to another call; it was not decrypted, and nothing ran.",
        "Find out who changes or copies messages or results; send the call again.")

    # 5: the broker's store
    STORE_FAILED = ("QT500",
        "The store of the broker cannot be read or written; nothing of the request was stored.",
        "Check the path, the permissions and the disk, then start the broker again.")
    STORE_LOCKED = ("QT501",
        "Another process has the database open.",
        "Stop that process, name another file, or let both programs use one `qtasks broker`.")
    STORE_FULL = ("QT502",
        "There is no space left for the store; nothing of the request was stored.",
        "Free disk space, or raise the quota.")
    STORE_TOO_NEW = ("QT503",
        "The database was written by a newer version of qtasks.",
        "Start the newer version, or name another file with --db.")
    DATABASE_FOREIGN = ("QT504",
        "The file is a database of another program; nothing was changed in it.",
        "Name a file of its own for the broker, or for the results: it is created if it does not exist.")

    # 6: the command line
    APPLICATION_NOT_FOUND = ("QT601",
        "No application was found at the given place, or in the places that are searched by default.",
        "Name it: qtasks dev tasks.py, qtasks dev package.module, or qtasks dev module:object.")
    APPLICATION_UNUSABLE = ("QT602",
        "The module was imported, but it does not contain an application that serves tasks.",
        "Name the right object (module:object), and include the router of the tasks in the application.")
    APPLICATION_IMPORT_FAILED = ("QT603",
        "The module of the application raised an error while it was imported.",
        "Correct the line that the message shows.")
    PORT_TAKEN = ("QT604",
        "The port is in use by another program.",
        "Stop that program, or choose another port (0 picks a free one).")
    APPLICATION_ENDED = ("QT605",
        "The application ended while it was starting.",
        "Read its log, which says why.")
    COMMAND_OPTION_INVALID = ("QT606",
        "An option of the command line has a value that cannot be read.",
        "Write the value as the message shows.")
    # fmt: on
