"""The job queue and its workers."""

from contextlib import ExitStack
from functools import partial

from sqlalchemy import select
from support import count, race

from booking.db import Session, fetch
from booking.models import Booking, Job
from booking.services import jobs


def enqueue(number: int, queue: str = "mail") -> None:
    with Session.begin() as session:
        for index in range(number):
            jobs.enqueue(session, queue=queue, payload={"index": index})


def work(worker: str) -> int:
    """Does jobs until none is left that it could have; how many those were."""
    done = 0
    while True:
        with Session.begin() as session:
            job = jobs.take(session, "mail")
            if job is None:
                return done
            jobs.finish(session, job, worker=worker)
            done += 1


def test_an_empty_queue_has_no_job() -> None:
    with Session() as session:
        assert jobs.take(session, "mail") is None


def test_jobs_are_taken_oldest_first() -> None:
    enqueue(2)
    with Session.begin() as session:
        first = jobs.take(session, "mail")
        assert first is not None
        jobs.finish(session, first, worker="w1")
        second = jobs.take(session, "mail")
    assert second is not None
    assert (first.id, second.id) == (1, 2)


def test_queues_do_not_mix() -> None:
    enqueue(1, queue="export")
    with Session() as session:
        assert jobs.take(session, "mail") is None


def test_a_job_that_is_held_is_skipped() -> None:
    enqueue(2)
    with Session() as one, Session() as other:
        held = [jobs.take(one, "mail"), jobs.take(other, "mail")]
        assert [job.id for job in held if job] == [1, 2]


def test_six_workers_hold_six_jobs_and_the_seventh_finds_none() -> None:
    enqueue(6)
    with ExitStack() as stack:
        sessions = [stack.enter_context(Session()) for _ in range(7)]
        held = [jobs.take(session, "mail") for session in sessions]
        assert [job.id if job else None for job in held] == [1, 2, 3, 4, 5, 6, None]


def test_a_worker_that_dies_gives_its_job_back() -> None:
    enqueue(1)
    with Session() as dying:
        jobs.take(dying, "mail")
    with Session() as session:
        assert jobs.take(session, "mail") is not None


def test_a_finished_job_names_its_worker() -> None:
    enqueue(1)
    assert work("w1") == 1
    with Session() as session:
        assert session.execute(select(Job.status, Job.done_by, Job.attempts)).all() == [("done", "w1", 1)]


def test_four_workers_do_every_job_exactly_once() -> None:
    enqueue(20)
    shares = race(*(partial(work, f"w{number}") for number in range(4)))
    assert sum(share for share in shares if isinstance(share, int)) == 20
    with Session() as session:
        assert jobs.waiting(session, "mail") == 0
        assert set(session.scalars(select(Job.attempts))) == {1}


def test_a_failed_job_is_tried_again() -> None:
    enqueue(1)
    with Session.begin() as session:
        job = jobs.take(session, "mail")
        assert job is not None
        jobs.fail(session, job)
        assert jobs.waiting(session, "mail") == 1


def test_a_job_is_given_up_after_three_failures() -> None:
    enqueue(1)
    for _ in range(3):
        with Session.begin() as session:
            job = jobs.take(session, "mail")
            assert job is not None
            jobs.fail(session, job)
    with Session() as session:
        assert jobs.take(session, "mail") is None
        assert fetch(session, Job, 1).status == "failed"


def test_a_job_of_a_rolled_back_transaction_never_was() -> None:
    with Session() as session:
        jobs.enqueue(session, queue="mail", payload={})
        session.rollback()
    assert count(Job) == 0


def test_a_confirmed_booking_leaves_one_mail_to_send(confirmed: Booking) -> None:
    with Session() as session:
        job = jobs.take(session, "mail")
        assert job is not None
        assert (job.id, job.payload) == (1, {"template": "confirmation", "booking": 1})
