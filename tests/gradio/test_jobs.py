"""The queue: one job at a time, in order, cancelled at any moment."""

import threading
import time

import pytest
from jobs import Job, Jobs


def job(owner="ann", name="1"):
    return Job(owner, "video", {}, "command", "a cat", name)


def wait_for(state, *jobs):
    deadline = time.monotonic() + 20
    while any(one.state != state for one in jobs):
        assert time.monotonic() < deadline, [one.state for one in jobs]
        time.sleep(0.005)


class Work:
    """Makes jobs in steps; each waits for `go`."""

    def __init__(self):
        self.go, self.steps, self.order = threading.Event(), 0, []

    def __call__(self, job):
        self.order.append(job.name)
        for step in range(1000):
            job.listen("sampling", step, 1000)
            self.steps += 1
            if self.go.wait(0.01):
                return [job.name]
        return []


def test_jobs_run_one_after_the_other_and_know_their_place():
    work = Work()
    jobs = Jobs(work, 3)
    first, second, other = job(name="1"), job(name="2"), job("bob", "3")
    for one in (first, second, other):
        jobs.submit(one)
    wait_for("running", first)
    assert [jobs.before(one) for one in (first, second, other)] == [0, 1, 2]
    assert second.state == other.state == "waiting"
    with pytest.raises(ValueError, match="The queue is full: 3 jobs"):
        jobs.submit(job())
    work.go.set()
    wait_for("done", first, second, other)
    assert work.order == ["1", "2", "3"] and first.paths == ["1"]
    assert jobs.of("ann") == [first, second] and jobs.of("bob") == [other] and jobs.of("") == []


def test_a_cancelled_job_stops_within_a_step_and_a_waiting_one_never_starts():
    work = Work()
    jobs = Jobs(work, 3)
    running, waiting, last = job(name="1"), job(name="2"), job(name="3")
    for one in (running, waiting, last):
        jobs.submit(one)
    wait_for("running", running)
    waiting.cancel()
    running.cancel()
    wait_for("cancelled", running, waiting)
    wait_for("running", last)
    assert work.order == ["1", "3"] and jobs.before(last) == 0
    steps = work.steps
    last.cancel()
    wait_for("cancelled", last)
    assert work.steps <= steps + 100 and running.paths == []


def test_errors_become_sentences_and_the_queue_goes_on():
    wrong = {"1": ValueError("fps=0: use a number\nabove 0."), "2": RuntimeError("inner"), "3": None}

    def make(job):
        if wrong[job.name]:
            raise wrong[job.name]
        return ["file"]

    jobs = Jobs(make, 5)
    three = [job(name=name) for name in wrong]
    for one in three:
        jobs.submit(one)
    wait_for("failed", *three[:2])
    wait_for("done", three[2])
    assert three[0].error == "fps=0: use a number above 0."
    assert three[1].error == "something broke (RuntimeError); the server's log says where"


def test_rate_counts_sampling_alone():
    one = job()
    one.listen("loading the model", 1, 2)
    assert one.rate == 0
    one.listen("sampling", 1, 9)
    time.sleep(0.02)
    one.listen("sampling", 3, 9)
    assert 0 < one.rate <= 100
    one.listen("decoding", 5, 9)
    assert one.rate == 0
