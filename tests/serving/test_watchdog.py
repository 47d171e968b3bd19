"""`serving.watchdog`, with a clock and processes that the test makes up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from serving.stubs import Stub
from serving.watchdog import OWED_S, QUIET_S, SERVER, UNWELL_S, Name, Sight, Verdict, Watchdog

ENGINE = ("bert_engine", 1)
TOKENIZER = ("bert_tokenizer", 1)
BOTH = frozenset({ENGINE, TOKENIZER})
PATIENCE_S = 60.0
STEP_S = 0.2


def stub(name: Name, *, pid: int = 0, state: str = "S", cpu_s: float = 0.0) -> Stub:
    pid = pid or (11 if name == ENGINE else 12)
    return Stub(pid=pid, model=name[0], version=name[1], state=state, cpu_s=cpu_s, region=f"region_{pid}")


def sight(
    *stubs: Stub,
    server: str = "S",
    offered: frozenset[Name] = BOTH,
    owed_s: dict[Name, float] | None = None,
    awake: frozenset[int] = frozenset(),
    unwell: frozenset[Name] = frozenset(),
    engines: int = 1,
) -> Sight:
    return Sight(
        server_state=server,
        stubs=stubs,
        offered=offered,
        owed_s=owed_s or {},
        awake=awake,
        unwell=unwell,
        instances={"bert_engine": engines, "bert_tokenizer": 1},
    )


def watch(seconds: float, see: Callable[[float], Sight], *, known: frozenset[Name] = BOTH) -> tuple[float, list[Verdict]]:
    """Look every `STEP_S` until there is a verdict or the time is over: (when, the verdicts)."""
    watchdog = Watchdog(PATIENCE_S, known)
    for number in range(round(seconds / STEP_S) + 1):
        now = number * STEP_S
        if verdicts := watchdog.look(now, see(now)):
            return now, verdicts
    return seconds, []


def named(verdicts: list[Verdict]) -> list[tuple[str, Name]]:
    return [(verdict.reason, (verdict.model, verdict.version)) for verdict in verdicts]


def test_what_works_is_left_alone() -> None:
    assert watch(100, lambda now: sight(stub(ENGINE, cpu_s=now), stub(TOKENIZER)))[1] == []


@pytest.mark.parametrize("lost", [ENGINE, TOKENIZER])
def test_a_version_without_a_process_is_dead_within_a_second(lost: Name) -> None:
    (left,) = BOTH - {lost}
    when, verdicts = watch(10, lambda now: sight(stub(left), *([stub(lost)] if now < 5 else [])))
    assert named(verdicts) == [("dead", lost)]
    assert 5 < when <= 5.8
    assert [one.pid for one in verdicts[0].stubs] == [stub(lost).pid]


def test_a_process_that_was_lost_before_the_first_look_is_missed() -> None:
    assert named(watch(5, lambda now: sight(stub(TOKENIZER)))[1]) == [("dead", ENGINE)]


def test_one_of_two_instances_that_was_lost_before_the_first_look_is_missed() -> None:
    when, verdicts = watch(5, lambda now: sight(stub(TOKENIZER), stub(ENGINE), engines=2))
    assert named(verdicts) == [("dead", ENGINE)]
    assert when <= 2 * STEP_S


def test_a_count_that_is_raised_by_hand_waits_for_the_next_load() -> None:
    assert watch(20, lambda now: sight(stub(TOKENIZER), stub(ENGINE), engines=1 if now < 5 else 2))[1] == []


def test_a_version_that_never_ran_in_a_stub_is_not_expected() -> None:
    assert watch(5, lambda now: sight(stub(TOKENIZER)), known=frozenset({TOKENIZER}))[1] == []  # a TensorRT engine


def test_an_instant_without_a_process_is_a_version_being_replaced() -> None:
    blink = {25: (), 26: (stub(ENGINE, pid=99),)}
    assert watch(20, lambda now: sight(stub(TOKENIZER), *blink.get(round(now / STEP_S), (stub(ENGINE),))))[1] == []


def test_a_version_that_was_taken_out_of_service_may_end() -> None:
    def retired(now: float) -> Sight:
        stubs = (stub(TOKENIZER), stub(ENGINE), *([stub(("bert_engine", 2), pid=13)] if now < 5.4 else []))
        return sight(*stubs, offered=BOTH | {("bert_engine", 2)} if now < 5 else BOTH)

    assert watch(20, retired)[1] == []


def test_one_of_two_versions_can_die() -> None:
    second = ("bert_engine", 2)
    see = lambda now: sight(  # noqa: E731
        stub(TOKENIZER), stub(ENGINE), *([stub(second, pid=13)] if now < 5 else []), offered=BOTH | {second}
    )
    assert named(watch(10, see)[1]) == [("dead", second)]


def test_one_of_two_instances_can_die_and_the_other_is_not_to_blame() -> None:
    two = (stub(TOKENIZER), stub(ENGINE, pid=21), stub(ENGINE, pid=22))
    when, verdicts = watch(10, lambda now: sight(*two[: 3 if now < 5 else 2], engines=2))
    assert named(verdicts) == [("dead", ENGINE)]
    assert 5 < when <= 5.8
    assert [one.pid for one in verdicts[0].stubs] == [22]


def test_instances_that_come_one_by_one_or_are_taken_out_of_the_config_are_not_missed() -> None:
    def loading(now: float) -> Sight:
        new = [stub(("bert_engine", 2), pid=21 + number) for number in range(int(now > 2) + int(now > 4))]
        old = (stub(TOKENIZER), stub(ENGINE, pid=11), stub(ENGINE, pid=12))
        return sight(*old, *new, offered=BOTH | {("bert_engine", 2)}, engines=2)

    assert watch(10, loading)[1] == []

    def shrunk(now: float) -> Sight:
        return sight(
            stub(TOKENIZER), *[stub(ENGINE, pid=21 + number) for number in range(1 + int(now < 4))], engines=2 - int(now > 3)
        )

    assert watch(10, shrunk)[1] == []


def test_instances_that_are_being_replaced_are_neither_missed_nor_too_many() -> None:
    pids = {25: (21,), 26: (21, 31), 27: (21, 31, 32), 28: (31, 32)}

    def replaced(now: float) -> Sight:
        look = round(now / STEP_S)
        return sight(
            stub(TOKENIZER), *(stub(ENGINE, pid=pid) for pid in pids.get(look, (21, 22) if look < 25 else (31, 32))), engines=2
        )

    assert watch(20, replaced)[1] == []


def test_an_idle_instance_does_not_hang_while_the_other_one_computes() -> None:
    see = lambda now: sight(  # noqa: E731
        stub(TOKENIZER), stub(ENGINE, pid=21), stub(ENGINE, pid=22, cpu_s=now), owed_s={ENGINE: min(now, 50)}, engines=2
    )
    assert watch(100, see)[1] == []
    both = lambda now: sight(stub(TOKENIZER), stub(ENGINE, pid=21), stub(ENGINE, pid=22), owed_s={ENGINE: now}, engines=2)  # noqa: E731
    (verdict,) = watch(100, both)[1]
    assert (verdict.reason, [one.pid for one in verdict.stubs]) == ("hung", [21, 22])


def test_of_two_instances_the_stopped_one_is_to_blame() -> None:
    (verdict,) = watch(
        10, lambda now: sight(stub(TOKENIZER), stub(ENGINE, pid=21), stub(ENGINE, pid=22, state="T"), engines=2)
    )[1]
    assert (verdict.reason, [one.pid for one in verdict.stubs]) == ("stopped", [22])


def test_a_stopped_process_is_found_within_a_second_and_a_short_stop_is_not() -> None:
    when, verdicts = watch(10, lambda now: sight(stub(TOKENIZER), stub(ENGINE, state="T" if now >= 5 else "S")))
    assert named(verdicts) == [("stopped", ENGINE)]
    assert when <= 5.8
    assert watch(10, lambda now: sight(stub(TOKENIZER), stub(ENGINE, state="T" if now == 5 else "S")))[1] == []


def test_an_overloaded_engine_owes_answers_and_computes_and_is_left_alone() -> None:
    see = lambda now: sight(stub(TOKENIZER), stub(ENGINE, cpu_s=now / 20), owed_s={ENGINE: min(now, PATIENCE_S - 1)})  # noqa: E731
    assert watch(300, see)[1] == []


def test_a_starved_stub_that_owes_nothing_is_left_alone() -> None:
    assert watch(300, lambda now: sight(stub(TOKENIZER), stub(ENGINE)))[1] == []


def test_a_stub_that_owes_an_answer_and_does_nothing_hangs_within_a_second() -> None:
    when, verdicts = watch(20, lambda now: sight(stub(TOKENIZER), stub(ENGINE, cpu_s=5), owed_s={ENGINE: max(0, now - 5)}))
    assert named(verdicts) == [("hung", ENGINE)]
    assert 5 + OWED_S <= when <= 5.5 + OWED_S
    see = lambda now: sight(stub(TOKENIZER), stub(ENGINE, cpu_s=min(now, 5)), owed_s={ENGINE: max(0, now - 5.4)})  # noqa: E731
    when, verdicts = watch(20, see)
    assert named(verdicts) == [("hung", ENGINE)]
    assert when <= 6


def test_a_stub_that_worked_a_moment_ago_is_watched_for_the_whole_time_first() -> None:
    see = lambda now: sight(stub(TOKENIZER), stub(ENGINE, cpu_s=min(now, 6)), owed_s={ENGINE: max(0, now - 5)})  # noqa: E731
    when, verdicts = watch(20, see)
    assert named(verdicts) == [("hung", ENGINE)]
    assert when >= 6 + QUIET_S - 2 * STEP_S


def test_a_starved_stub_that_wants_a_core_or_waits_for_a_disk_now_and_then_is_left_alone() -> None:
    """With the rule for those that hang it would be found again and again; patience ends it, as for one that computes."""
    see = lambda now: sight(  # noqa: E731
        stub(TOKENIZER), stub(ENGINE), owed_s={ENGINE: now}, awake=frozenset({11} if round(now / STEP_S) % 3 == 0 else ())
    )
    when, verdicts = watch(100, see)
    assert named(verdicts) == [("endless", ENGINE)]
    assert when == pytest.approx(PATIENCE_S)


def test_while_the_server_itself_owes_its_health_no_stub_is_to_blame() -> None:
    owed = {SERVER: 0.5, ENGINE: 5.0, TOKENIZER: 5.0}
    assert watch(30, lambda now: sight(stub(TOKENIZER), stub(ENGINE), owed_s=owed))[1] == []


def test_a_stub_that_computes_for_ever_is_replaced_when_patience_ends() -> None:
    see = lambda now: sight(stub(TOKENIZER), stub(ENGINE, cpu_s=now), owed_s={ENGINE: now})  # noqa: E731
    when, verdicts = watch(100, see)
    assert named(verdicts) == [("endless", ENGINE)]
    assert when == pytest.approx(PATIENCE_S)


def test_not_healthy_has_to_be_said_for_a_while() -> None:
    see = lambda now: sight(stub(TOKENIZER), stub(ENGINE), unwell=frozenset({ENGINE} if now >= 5 else ()))  # noqa: E731
    when, verdicts = watch(20, see)
    assert named(verdicts) == [("unwell", ENGINE)]
    assert when >= 5 + UNWELL_S
    once = lambda now: sight(stub(TOKENIZER), stub(ENGINE), unwell=frozenset({ENGINE} if now % 2 < 1 else ()))  # noqa: E731
    assert watch(60, once)[1] == []


def test_the_server_is_stopped_or_silent() -> None:
    stubs = (stub(TOKENIZER), stub(ENGINE))
    (verdict,) = watch(10, lambda now: sight(*stubs, server="T" if now >= 5 else "S"))[1]
    assert (verdict.reason, verdict.server) == ("stopped", True)
    (verdict,) = watch(100, lambda now: sight(*stubs, owed_s={SERVER: now}))[1]
    assert (verdict.reason, verdict.server) == ("endless", True)
    assert watch(59, lambda now: sight(*stubs, owed_s={SERVER: now}))[1] == []
