"""Counters of the web page in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest  # pyright: ignore[reportMissingImports]


class Metrics:
    """The counters of one studio.

    Attributes:
        jobs: finished jobs by outcome: done, failed or cancelled.
        waiting: jobs that wait for a device.
        running: jobs that are computed.
        frames: generated frames.
        seconds: time from the first frame's start to the complete video.
    """

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        self.jobs = Counter("emo_jobs", "Finished jobs.", ["outcome"], registry=registry)
        self.waiting = Gauge("emo_jobs_waiting", "Jobs that wait for a device.", registry=registry)
        self.running = Gauge("emo_jobs_running", "Jobs that are computed.", registry=registry)
        self.frames = Counter("emo_frames", "Generated frames.", registry=registry)
        self.seconds = Histogram("emo_job_seconds", "Seconds of a complete job.", registry=registry)
        for outcome in ("done", "failed", "cancelled"):
            self.jobs.labels(outcome)

    def text(self) -> bytes:
        """Returns the values as a scraper reads them."""
        return generate_latest(self._registry)
