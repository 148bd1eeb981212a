"""Threads of tests that run at the same time."""

import threading


def run_together(*tasks):
    """Runs the tasks in threads that start at the same time, and raises the first error of any."""
    barrier, errors = threading.Barrier(len(tasks)), []

    def run(task):
        try:
            barrier.wait(timeout=60)
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
