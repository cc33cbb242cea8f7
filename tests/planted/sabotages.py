"""The sabotages: each names a promise that one changed line breaks, and the tests that must fail then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One line of the product, replaced so that a promise is broken."""

    name: str
    """What goes wrong."""
    file: str
    line: str
    """Text that stands in the file exactly once."""
    planted: str
    """What replaces it."""
    tests: str
    """Arguments of pytest, separated by spaces."""


_STORE: Final = "qtasks/broker/store"
_VERBS: Final = f"{_STORE}/verbs"
_COMMIT: Final = "a failed commit is answered as success"
_UNVERIFIED: Final = "a delivery with a wrong signature runs"
_STALE: Final = "a stale claim settles the attempt of another"

IN_EVERY_RUN: Final = frozenset({_COMMIT, _UNVERIFIED, _STALE})
"""The names of those that every run of the suite plants."""

SABOTAGES: Final = (
    # -- accepted means stored
    Sabotage(
        _COMMIT,
        f"{_STORE}/group_commit.py",
        "        except Exception as error:\n            return error\n        self._commit_s",
        "        except Exception:\n            return None\n        self._commit_s",
        "tests/store/test_group_commit.py",
    ),
    Sabotage(
        "a commit is not synced to the disk",
        f"{_STORE}/connection.py",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL",
        "tests/store/test_power.py tests/store/test_sqlite.py",
    ),
    Sabotage(
        "a second broker opens the same file",
        f"{_STORE}/file_lock.py",
        "        _lock_database(descriptor)\n    except",
        "        assert descriptor\n    except",
        "tests/store/test_file_lock.py",
    ),
    Sabotage(
        "one bad write ends the store for all",
        f"{_STORE}/group_commit.py",
        "        if storage_errors.is_fatal(error):\n            self._break(error, group)",
        "        if error:\n            self._break(error, group)",
        "tests/store/test_group_commit.py",
    ),
    # -- at least once, and no more often than promised
    Sabotage(
        _STALE,
        f"{_VERBS}/settle.py",
        "AND claim_token = ?6",
        "AND claim_token >= ?6",
        "tests/store/test_verbs.py",
    ),
    Sabotage(
        "attempts that a crash cut are not made again",
        f"{_STORE}/sqlite.py",
        "recovery = run_in_transaction(db, recover, now_ms=steady.now_ms())",
        "recovery = Recovery(0, 0)",
        "tests/store",
    ),
    Sabotage(
        "one retry too few is made",
        "qtasks/broker/core/rules.py",
        "message.retried >= message.max_retries:",
        "message.retried + 1 >= message.max_retries:",
        "tests/unit/broker/test_rules.py",
    ),
    Sabotage(
        "a message that asks for no retry is retried",
        "qtasks/broker/core/rules.py",
        "    elif is_final(outcome) or message",
        "    elif message",
        "tests/unit/broker/test_rules.py",
    ),
    Sabotage(
        "the deduplication window ends at once",
        f"{_VERBS}/accept.py",
        "now_ms + DEDUPLICATION_WINDOW_MS)",
        "now_ms)",
        "tests/store/test_verbs.py",
    ),
    Sabotage(
        "a retry keeps the number of the attempt before",
        f"{_VERBS}/settle.py",
        'retried="retried + ?3",',
        'retried="retried",',
        "tests/store tests/unit/broker/test_deliverer.py",
    ),
    Sabotage(
        "a failed message leaves no dead letter",
        f"{_VERBS}/settle.py",
        "    if transition.to is Stage.FAILED:\n",
        "    if transition.to is Stage.CANCELED:\n",
        "tests/store tests/unit/broker",
    ),
    Sabotage(
        "a callback is not stored with the end of its message",
        f"{_VERBS}/settle.py",
        "    insert(db, publications, now_ms=now_ms, parent=claim.seq)\n",
        "",
        "tests/store/test_callbacks.py",
    ),
    Sabotage(
        "a tick of a schedule fires twice",
        f"{_VERBS}/schedules.py",
        "    return row is not None\n\n\ndef _schedule(",
        "    return True\n\n\ndef _schedule(",
        "tests/unit/broker/test_schedules.py",
    ),
    # -- order and limits
    Sabotage(
        "a queue starts one message too many",
        f"{_VERBS}/admission.py",
        '(free := parallelism - cast("int", used)) <= 0',
        '(free := parallelism + 1 - cast("int", used)) <= 0',
        "tests/store/test_admission.py",
    ),
    Sabotage(
        "a queue does not keep its order",
        f"{_VERBS}/admission.py",
        "ORDER BY place, seq LIMIT ? OFFSET ?",
        "ORDER BY place DESC, seq DESC LIMIT ? OFFSET ?",
        "tests/store/test_admission.py",
    ),
    Sabotage(
        "a rate is exceeded by one",
        f"{_VERBS}/admission.py",
        "if rate is not None and count >= rate and",
        "if rate is not None and count > rate and",
        "tests/store/test_admission.py",
    ),
    Sabotage(
        "the parallelism of a flow-control key is not held",
        f"{_VERBS}/admission.py",
        "if parallelism is not None and db.execute(_RUNNING, (account, key)).get >= parallelism:",
        "if parallelism is not None and db.execute(_RUNNING, (account, key)).get > parallelism:",
        "tests/store/test_admission.py",
    ),
    # -- fail closed
    Sabotage(
        _UNVERIFIED,
        "qtasks/protocol/signing.py",
        "by_next = bool(keys.next) and hmac.compare_digest(_mac(keys.next, signed), signature)",
        "by_next = True",
        "tests/unit/protocol/test_signing.py",
    ),
    Sabotage(
        "a changed body passes the signature",
        "qtasks/protocol/signing.py",
        "if not hmac.compare_digest(actual, body_hash.encode()):",
        "if not actual:",
        "tests/unit/protocol/test_signing.py tests/unit/tasks/test_dispatcher.py",
    ),
    Sabotage(
        "an expired signature is valid",
        "qtasks/protocol/signing.py",
        "if expires_s <= now_s - tolerance_s:",
        "if expires_s <= 0 - tolerance_s:",
        "tests/unit/protocol/test_signing.py",
    ),
    Sabotage(
        "a delivery for one task runs another",
        "qtasks/tasks/run/dispatcher.py",
        'url=f"{self._base_url}/{delivery.task}" + (f"?{delivery.query}" if delivery.query else ""),',
        "url=None,",
        "tests/unit/tasks/test_dispatcher.py",
    ),
    Sabotage(
        "a bundle passes the user's middleware once for all of its deliveries",
        "qtasks/tasks/web/router.py",
        "if not (self._takes_bundles(scope) and is_direct()):",
        "if not dispatcher:",
        "tests/integration/test_bundle_passage.py",
    ),
    Sabotage(
        "a bundle that arrives again runs again",
        "qtasks/tasks/run/dispatcher.py",
        'f"{jti}.{place}"',
        '""',
        "tests/integration/test_bundles.py",
    ),
    Sabotage(
        "a delivery of a bundle runs where there is no room",
        "qtasks/tasks/run/slots.py",
        "if self.running >= MAX_RUNNING or (",
        "if (",
        "tests/integration/test_bundles.py",
    ),
    Sabotage(
        "a forged pickle is read",
        "qtasks/tasks/encode/pickling.py",
        "if not text.startswith(MARK) or not any(good):",
        "if not text.startswith(MARK):",
        "tests/unit/tasks/test_pickles.py",
    ),
    Sabotage(
        "a token for reading may write",
        "qtasks/broker/api/routes.py",
        "if principal.scope < route.scope:",
        "if principal.scope > route.scope:",
        "tests/unit/broker",
    ),
    Sabotage(
        "an account cancels the messages of another",
        f"{_VERBS}/reads/queries.py",
        "SELECT seq FROM messages WHERE account = ? AND id = ?",
        "SELECT seq FROM messages WHERE account > -?1 AND id = ?2",
        "tests/unit/broker",
    ),
    Sabotage(
        "a public broker delivers to a private address",
        "qtasks/broker/transport/destination_policy.py",
        '"public": frozenset({AddressKind.GLOBAL}),',
        '"public": frozenset({AddressKind.GLOBAL, AddressKind.PRIVATE}),',
        "tests/unit/broker/test_destination_policy.py",
    ),
    Sabotage(
        "a redirect of an endpoint is followed",
        "qtasks/broker/transport/http_transport.py",
        "allow_redirects=False,",
        "allow_redirects=True,",
        "tests/integration/test_streamed_responses.py",
    ),
    Sabotage(
        "healthy endpoints wait for unanswered requests to others",
        "qtasks/broker/transport/http_transport.py",
        "limit=0,  # none",
        "limit=256,",
        "tests/integration/test_http_transport.py tests/integration/test_fair_turns.py",
    ),
    Sabotage(
        "an endless answer of an endpoint is read",
        "qtasks/broker/transport/http_exchange.py",
        "elif len(self._body) > self._limit:",
        "elif False:",
        "tests/integration/test_http_transport.py",
    ),
    Sabotage(
        "a broken bundle interrupts what had a line",
        "qtasks/broker/loops/bundle_attempts.py",
        "if (claim := self._open.pop(outcome.place, None)) is not None",
        "if (claim := self._open.get(outcome.place)) is not None",
        "tests/unit/broker/test_bundles.py",
    ),
    Sabotage(
        "a bundle is waited for after its answer",
        "qtasks/broker/loops/bundle_attempts.py",
        "            self._parts.limits.answer_bundle(self._bundle.key.lot)",
        "            pass",
        "tests/unit/broker/test_ends_of_attempts.py",
    ),
    Sabotage(
        "a wait that ends during a claim is missed",
        "qtasks/broker/loops/deliverer.py",
        "probe_ms = self._limits.next_probe_ms(began_ms)",
        "probe_ms = self._limits.next_probe_ms(self._clock.now_ms())",
        "tests/unit/broker/test_bundles.py",
    ),
    Sabotage(
        "a bundle holds the messages of several accounts",
        "qtasks/broker/core/bundle_plan.py",
        "return BundleKey(row.account, claim.lot, address.folder), address.target",
        "return BundleKey(1, claim.lot, address.folder), address.target",
        "tests/unit/broker/test_bundles.py",
    ),
    Sabotage(
        "a line of a bundle without an end is kept in memory",
        "qtasks/broker/core/bundle_lines.py",
        "if self._size > MAX_LINE:",
        "if False:",
        "tests/unit/broker/test_bundles.py",
    ),
    Sabotage(
        "a page that rebinds its name reaches the API",
        "qtasks/broker/server/hosts.py",
        "if hosts is not None and",
        "if hosts is None and",
        "tests/integration/test_http_protocol.py",
    ),
    # -- never silently dropped
    Sabotage(
        "a damaged message is delivered",
        f"{_VERBS}/claim.py",
        "elif (fault := candidate.fault()) is not None:",
        "elif (fault := candidate.state_fault()) is not None:",
        "tests/store",
    ),
    Sabotage(
        "retention removes a message that waits for its callbacks",
        f"{_VERBS}/retention.py",
        "AND finished_ms < ? AND slot = 0",
        "AND finished_ms < ? AND slot >= 0",
        "tests/store/test_retention.py",
    ),
    Sabotage(
        "a name that stands twice in JSON is read",
        "qtasks/protocol/strict_json.py",
        "return value if quick_json.dumps(value) == data else _UNREAD",
        "return value",
        "tests/unit/protocol/test_strict_json.py",
    ),
    Sabotage(
        "a limit of time that is far away passes unseen",
        "qtasks/rare_timers.py",
        "if timer.when_s <= next_s]",
        "if timer.when_s > next_s]",
        "tests/unit/test_rare_timers.py",
    ),
    Sabotage(
        "arguments are not checked before the function runs",
        "qtasks/tasks/run/executor.py",
        "            return attempt.unfit(named_source(attempt.envelope, error))\n        return await self.run(",
        "            values = {}\n        return await self.run(",
        "tests/unit/tasks/test_dispatcher.py",
    ),
    Sabotage(
        "the result is not recorded before the broker gets its answer",
        "qtasks/tasks/run/executor.py",
        "        self._writer.unlock(locks)\n        await self._writer.flush()\n\n    async def _keep",
        "        self._writer.unlock(locks)\n\n    async def _keep",
        "tests/unit/tasks",
    ),
    Sabotage(
        "a second delivery of a running call runs beside it",
        "qtasks/tasks/run/lease.py",
        '    if "run" not in taken:\n',
        "    if taken is not None:\n",
        "tests/unit/tasks/test_lease_overlap.py",
    ),
    Sabotage(
        "a unique call is sent twice",
        "qtasks/tasks/results/unique.py",
        "    if valid.owner == lock.owner:\n        return None",
        "    if True:\n        return None",
        "tests/unit/tasks",
    ),
    # -- strangers
    Sabotage(
        "a rule for one path opens its neighbours",
        "qtasks/broker/transport/allow_rules.py",
        'return path == self.path or path.startswith(f"{self.path}/")',
        "return path.startswith(self.path)",
        "tests/unit/broker/test_limited_rules.py",
    ),
    Sabotage(
        "a rule for POST opens other methods",
        "qtasks/broker/transport/http_transport.py",
        "limited = self._policy.limited_rules(parts, method)",
        'limited = self._policy.limited_rules(parts, "POST")',
        "tests/integration/test_reach.py",
    ),
    Sabotage(
        "a replay runs the task again",
        "qtasks/tasks/run/received.py",
        "return earlier",
        "return None",
        "tests/unit/tasks/test_received.py",
    ),
    Sabotage(
        "the broker of qtasks dev delivers to itself",
        "qtasks/cli/dev/dev_command.py",
        "settings.listening_on(*broker_socket.getsockname())",
        "settings",
        "tests/integration/test_dev_doors.py",
    ),
    # -- clocks
    Sabotage(
        "a restart forgets that the clock was wrong",
        "qtasks/broker/steady_clock.py",
        "times = (wall_ms, wall_ms - mark.offset_ms)",
        "times = (wall_ms, wall_ms)",
        "tests/unit/broker/test_clock_jumps.py",
    ),
    Sabotage(
        "a clock that was ahead silences a schedule",
        "qtasks/broker/loops/scheduler.py",
        "if next_ms is not None and (run.next_ms is None or next_ms < run.next_ms):",
        "if next_ms is not None and run.next_ms is None:",
        "tests/unit/broker/test_clock_jumps.py",
    ),
    Sabotage(
        "a leap of the clock deletes what is young",
        "qtasks/broker/core/retention_age.py",
        "left_ms -= since_ms + min(DAY_MS, leap.to_ms - leap.from_ms)",
        "left_ms -= since_ms + leap.to_ms - leap.from_ms",
        "tests/unit/broker/test_clock_jumps.py",
    ),
    # -- files and disks
    Sabotage(
        "a commit into a file that was removed is answered",
        f"{_STORE}/group_commit.py",
        "if (change := self._file_change()) is not None:",
        "if (change := None) is not None:",
        "tests/store/test_file_watch.py",
    ),
    Sabotage(
        "the log of another database is applied",
        f"{_STORE}/file_lock.py",
        "orphaned_log.set_aside(self._path, os.fstat(_held[self._database][0]))",
        "pass",
        "tests/store/test_orphaned_log.py",
    ),
    Sabotage(
        "a page that cannot be read stops deliveries only",
        f"{_STORE}/storage_errors.py",
        "_FATAL: Final = (apsw.IOError, apsw.CorruptError, apsw.NotADBError)",
        "_FATAL: Final = (apsw.IOError,)",
        "tests/store/test_damaged_pages.py",
    ),
    Sabotage(
        "a log that a power cut has torn is called damaged",
        f"{_STORE}/integrity/wal_check.py",
        "if first is not None and ends > (first > 0) else None",
        "if first is not None and ends > 0 else None",
        "tests/store/test_damaged_log.py",
    ),
    Sabotage(
        "the ballast is not removed on a full disk",
        f"{_STORE}/ballast.py",
        "return self._ballast.remove()",
        "return False",
        "tests/store/test_full_disk.py",
    ),
    Sabotage(
        "new messages take the room that others need to end",
        f"{_STORE}/sqlite.py",
        "return self._if_room(work) if verb in _ACCEPTING else work",
        "return work",
        "tests/store/test_full_disk.py",
    ),
    Sabotage(
        "every answer of a failing endpoint is kept",
        f"{_VERBS}/log_entries.py",
        "cut_answer(db, last[0])",
        "pass",
        "tests/store/test_growth.py",
    ),
    # -- connections
    Sabotage(
        "a trailer field counts as a header",
        "qtasks/broker/server/http_protocol.py",
        "self.headers = []  # for trailer fields",
        "self.headers = self.headers  # for trailer fields",
        "tests/integration/test_http_protocol.py",
    ),
    Sabotage(
        "a chunk extension has no end",
        "qtasks/broker/server/http_protocol.py",
        "self._framing_bytes += len(portion)",
        "self._framing_bytes += 0",
        "tests/integration/test_http_protocol.py",
    ),
    Sabotage(
        "a body may come as slowly as it likes",
        "qtasks/broker/server/connection_watch.py",
        "elif now - seen.since_s > limits.body_s + received / limits.body_rate:",
        "elif now - seen.since_s > limits.body_s + received:",
        "tests/unit/broker/test_connection_watch.py",
    ),
    # -- damage
    Sabotage(
        "a POST that became a PUT is delivered",
        f"{_VERBS}/sums.py",
        "            message.method,\n",
        '            "POST",\n',
        "tests/store/test_damaged_rows.py",
    ),
    Sabotage(
        "a damaged message gives away the place of another",
        f"{_VERBS}/damage/quarantine.py",
        "if any(message.parent is not None or not message.has_sound_identity() for message in messages):",
        "if any(False for message in messages):",
        "tests/store/test_damaged_rows.py",
    ),
    Sabotage(
        "a damaged dead letter is sent again",
        "qtasks/broker/api/dead_letters.py",
        "    if letter.message.damaged:",
        "    if False:",
        "tests/unit/broker/test_api_damage.py",
    ),
    # -- the loop
    Sabotage(
        "the loop waits for the lock of another program",
        f"{_STORE}/group_commit.py",
        "db.set_busy_timeout(0)  # the loop",
        "db.set_busy_timeout(5000)  # the loop",
        "tests/store/test_held_loop.py",
    ),
    Sabotage(
        "a shared body goes with the first of its messages",
        f"{_STORE}/schema/0004_hostile_days.sql",
        "BETWEEN shared_bodies.first AND shared_bodies.last",
        "BETWEEN shared_bodies.first AND shared_bodies.first",
        "tests/store/test_held_loop.py",
    ),
    Sabotage(
        "a stale token in a group settles the attempt of another",
        f"{_VERBS}/settle.py",
        'AND stage = {Stage.ACTIVE} AND claim_token = ?3"',
        'AND stage = {Stage.ACTIVE} AND ?3"',
        "tests/store/test_groups.py",
    ),
    Sabotage(
        "a claim reads again what it has claimed already",
        f"{_VERBS}/claim.py",
        "self._write()\n            if len(candidates) == count:",
        "if len(candidates) == count:",
        "tests/store",
    ),
    Sabotage(
        "a message of an earlier release is claimed without a sum",
        f"{_VERBS}/claim.py",
        "if candidate.checksum < sums.FIRST_OF_VERSION_2:",
        "if candidate.checksum < 0:",
        "tests/store/test_damaged_rows.py",
    ),
    Sabotage(
        "a claim that has read enough forgets the rest",
        f"{_VERBS}/claim.py",
        "self.has_more = self.has_more or self._has_read_enough()",
        "self.has_more = self.has_more or False",
        "tests/store/test_held_loop.py",
    ),
    Sabotage(
        "a long list loses an entry between its pieces",
        "qtasks/broker/api/pages.py",
        "bounds.append((last.begin, last.count))",
        "bounds.append((last.begin, last.count - 1))",
        "tests/unit/broker/test_large_pages.py",
    ),
    # -- what arrives is what was sent
    Sabotage(
        "a value arrives changed in silence",
        "qtasks/tasks/encode/typed_json.py",
        "if changed is not None:",
        "if changed is None and False:",
        "tests/unit/tasks/test_faithful_values.py",
    ),
    Sabotage(
        "the key of a unique call with a set depends on the process",
        "qtasks/tasks/encode/plain_form.py",
        "return sorted(items, key=_canonical) if isinstance(value, abc.Set) else items",
        "return items",
        "tests/unit/tasks/test_lasting_keys.py",
    ),
    Sabotage(
        "a value of a union arrives as another member",
        "qtasks/tasks/encode/unions.py",
        "for name in self._members:",
        "for name in ():",
        "tests/unit/tasks/test_faithful_values.py",
    ),
    Sabotage(
        "an encrypted value can be moved to another call",
        "qtasks/tasks/encode/encryption.py",
        ".encode() + purpose.framed()",
        ".encode()",
        "tests/unit/tasks/test_encryption.py",
    ),
    Sabotage(
        "arguments of a later call of a flow are not checked",
        "qtasks/tasks/flow/step_arguments.py",
        "checked = parameters.check(values)",
        "checked = values",
        "tests/unit/tasks/test_flow_arguments.py",
    ),
    Sabotage(
        "a chord that collects successes waits for a failed member",
        "qtasks/tasks/results/flow_plan.py",
        "if inner.is_all or collects_successes(node):",
        "if inner.is_all:",
        "tests/unit/tasks/test_flow_collect.py",
    ),
    Sabotage(
        "an argument of a newer version is a dead letter at once",
        "qtasks/tasks/run/decision.py",
        "if error.code == ErrorCode.ARGUMENT_UNEXPECTED:",
        "if False:",
        "tests/unit/tasks/test_dispatcher.py tests/unit/tasks/test_unfit_parameters.py",
    ),
    # -- where people run it
    Sabotage(
        "a synchronous wrapper of a coroutine function runs on the loop",
        "qtasks/tasks/decorators.py",
        "iscoroutinefunction(function) else",
        "iscoroutinefunction(inspect.unwrap(function)) else",
        "tests/unit/tasks/test_decorated.py",
    ),
    Sabotage(
        "a handle shows the result of another task",
        "qtasks/tasks/run/lease.py",
        "if _is_of_another_task(state.record, attempt):",
        "if False:",
        "tests/unit/tasks/test_no_mixed_results.py",
    ),
    Sabotage(
        "a call made in the background of a batch is lost",
        "qtasks/tasks/send/batch.py",
        "            self._calls = others",
        "            self._calls = []",
        "tests/unit/tasks/test_batch_in_background.py",
    ),
    Sabotage(
        "a call that shares a request gets the answer of another",
        "qtasks/tasks/send/coalescer.py",
        "in zip(group, outcomes, strict=True):",
        "in zip(group, reversed(outcomes), strict=True):",
        "tests/unit/tasks/test_coalescing.py",
    ),
    Sabotage(
        "calls to another service share a request",
        "qtasks/tasks/send/call_sender.py",
        "self._is_ours = self._is_ours or reply.header(BROKER_HEADER) is not None",
        "self._is_ours = True",
        "tests/unit/tasks/test_coalescing.py",
    ),
    Sabotage(
        "the end of a call is reported as that of another of its task",
        "qtasks/tasks/send/prepared_call.py",
        "own = frozenset({_CALL_ID, _END, _FAILURE} if reports_failure else {_CALL_ID, _END})",
        "own = frozenset({_CALL_ID, _FAILURE})",
        "tests/unit/tasks/test_prepared_call.py",
    ),
    Sabotage(
        "a forked process uses the threads of its parent",
        "qtasks/threads.py",
        "per_process(self._begin)",
        "self._begin()",
        "tests/unit/test_forks.py",
    ),
    Sabotage(
        "a broker on this machine is reached through a proxy",
        "qtasks/qstash/conversation/proxies.py",
        "if is_this_machine(host):",
        "if False:",
        "tests/unit/qstash/test_proxies.py",
    ),
    Sabotage(
        "a task does not see the state of the lifespan",
        "qtasks/tasks/web/gateway.py",
        "if self._state is not None:",
        "if False:",
        "tests/integration/test_homes.py",
    ),
    # -- requests over plain sockets
    Sabotage(
        "bytes that follow an answer are read as the next one",
        "qtasks/qstash/conversation/http1_response.py",
        "return self.is_complete and not self._is_last and not self._received",
        "return self.is_complete and not self._is_last",
        "tests/unit/qstash/test_http1_response.py",
    ),
    Sabotage(
        "a request that may have been heard is said to be surely unheard",
        "qtasks/qstash/conversation/plain_connections.py",
        "return NOT_HTTP if is_first else Explanation(str(error))",
        "return NOT_HTTP",
        "tests/unit/qstash/test_plain_transport.py",
    ),
    Sabotage(
        "a cancelled request leaves its connection to the next one",
        "qtasks/qstash/conversation/async_plain_transport.py",
        "except BaseException as error:\n                    connection.close()",
        "except BaseException as error:\n                    self._kept.put_back(service, connection)",
        "tests/unit/qstash/test_plain_transport.py",
    ),
    # -- the wire of the newest clients
    Sabotage(
        "a bulk cancel leaves messages",
        "qtasks/broker/api/messages.py",
        "count = None if count == ALL_IN_FACT else count",
        "pass",
        "tests/unit/broker/test_newest_clients.py",
    ),
    Sabotage(
        "a workflow run in a batch is lost",
        "qtasks/broker/api/publish.py",
        "workflows.check_items(items)",
        "pass",
        "tests/unit/broker/test_newest_clients.py",
    ),
    Sabotage(
        "an item of a batch loses the headers that its group forwards",
        "qtasks/broker/api/publish.py",
        ' and wire.destination_kind(target.destination) != "group":',
        ":",
        "tests/unit/broker/test_api_publish.py",
    ),
    Sabotage(
        "the query of a URL is not looked at",
        "qtasks/protocol/targets.py",
        "if mark and _UNSENDABLE.search(query) is None else None",
        "if mark else None",
        "tests/unit/protocol/test_targets.py",
    ),
    Sabotage(
        "a message gets the ids of the one before",
        "qtasks/protocol/wire.py",
        "return changed(options, **changes)",
        "return options.__dict__.update(changes) or options",
        "tests/unit/protocol/test_wire.py",
    ),
    Sabotage(
        "an endpoint hints without end",
        "qtasks/broker/transport/http_exchange.py",
        "if self._informational > MAX_INFORMATIONAL:",
        "if False:",
        "tests/integration/test_http_transport.py",
    ),
    Sabotage(
        "a response that breaks off is no answer",
        "qtasks/broker/transport/http_exchange.py",
        "elif self.has_head:",
        "elif False:",
        "tests/integration/test_http_transport.py",
    ),
    Sabotage(
        "a database is not marked as ours",
        "qtasks/broker/store/connection.py",
        "run_in_transaction(db, _mark)",
        "pass",
        "tests/store/test_foreign_databases.py",
    ),
)
