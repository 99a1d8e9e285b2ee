"""Threads that run one at a time, so that generations interleave as a schedule says, and the same way every time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Condition


class Turns:
    """Runs tasks in threads, of which one has the turn; it passes the turn on whenever it pauses, or ends.

    Args:
        schedule: Whose turn is next at each pause, counted among the tasks that still run. Once the schedule is
            over, a task keeps its turn to its end.
    """

    def __init__(self, schedule):
        self.schedule, self.running, self.turn, self.changed = iter(schedule), [], 0, Condition()

    def run(self, tasks):
        """Calls each task with a function that pauses it; what the first one raises is raised here."""
        self.running = [*range(len(tasks))]
        with ThreadPoolExecutor(len(tasks)) as threads:
            lives = [threads.submit(self._live, me, task) for me, task in enumerate(tasks)]
        for life in lives:
            life.result()

    def _live(self, me, task):
        self._wait(me)
        try:
            task(lambda: self._pause(me))
        finally:
            with self.changed:
                self.running.remove(me)
                if self.running:
                    self._pass_on(self.running[0])

    def _pause(self, me):
        with self.changed:
            self._pass_on(me)
        self._wait(me)

    def _wait(self, me):
        with self.changed:
            self.changed.wait_for(lambda: self.turn == me)

    def _pass_on(self, default):
        following = next(self.schedule, None)
        self.turn = default if following is None else self.running[following % len(self.running)]
        self.changed.notify_all()
