"""Threads that run one at a time, so that generations interleave by a schedule, the same every time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Condition


class Turns:
    """Runs tasks in threads, of which one has the turn; it passes the turn on whenever it pauses, or ends.

    Args:
        schedule: Whose turn is next at each pause, counted among the tasks that still run. Once the schedule is
            over, a task keeps its turn to its end.
    """

    def __init__(self, schedule):
        self.schedule = iter(schedule)
        self.running = []
        self.turn = 0
        self.changed = Condition()

    def run(self, tasks):
        """Calls each task with a function that pauses it; the first exception of a task is raised here."""
        self.running = [*range(len(tasks))]
        with ThreadPoolExecutor(len(tasks)) as threads:
            futures = [threads.submit(self._run, index, task) for index, task in enumerate(tasks)]
        for future in futures:
            future.result()

    def _run(self, index, task):
        self._wait(index)
        try:
            task(lambda: self._pause(index))
        finally:
            with self.changed:
                self.running.remove(index)
                if self.running:
                    self._pass_on(self.running[0])

    def _pause(self, index):
        with self.changed:
            self._pass_on(index)
        self._wait(index)

    def _wait(self, index):
        with self.changed:
            self.changed.wait_for(lambda: self.turn == index)

    def _pass_on(self, default):
        following = next(self.schedule, None)
        self.turn = default if following is None else self.running[following % len(self.running)]
        self.changed.notify_all()
