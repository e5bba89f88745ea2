"""A queue of jobs in a table; a worker holds a job by a row lock, so a worker that dies gives it back."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from booking.models import Job

MAX_ATTEMPTS = 3


def enqueue(session: Session, *, queue: str, payload: dict[str, Any]) -> Job:
    job = Job(queue=queue, payload=payload)
    session.add(job)
    session.flush()
    return job


def take(session: Session, queue: str) -> Job | None:
    """The oldest job that no other worker holds, held until the transaction ends."""
    return session.scalar(
        select(Job)
        .where(Job.queue == queue, Job.status == "queued")
        .order_by(Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def finish(session: Session, job: Job, *, worker: str) -> None:
    job.status = "done"
    job.done_by = worker
    job.attempts += 1
    session.flush()


def fail(session: Session, job: Job) -> None:
    """Back into the queue, or given up after the last attempt."""
    job.attempts += 1
    if job.attempts >= MAX_ATTEMPTS:
        job.status = "failed"
    session.flush()


def waiting(session: Session, queue: str) -> int:
    return session.scalars(
        select(func.count()).select_from(Job).where(Job.queue == queue, Job.status == "queued")
    ).one()
