"""A corpus job in a process of its own: `run FOLDER`, `kill FOLDER N` (killed at random, again and again), `die FOLDER` (a worker dies),
`full FOLDER BYTES` (on a disk that takes no larger file)."""
import json
import multiprocessing
import random
import resource
import signal
import sys
import time
from pathlib import Path

rng = random.Random(0)


def job(folder):
    "Imported late: the process that only kills needs no torch."
    from corpus_job import job

    return job(folder)


def killed_at_random(folder, times):
    """Start, kill -9 at a random moment; again, until it was killed so often, then let it finish. The jobs begin as copies of a server
    that has imported everything and run nothing, so a start costs milliseconds and no lock is inherited in a held state."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["corpus_job"])

    def started(name):
        process = context.Process(target=job, args=(folder / name,))
        process.start()
        return process

    started("warm").join()  # the server's imports
    begun = time.time()
    started("whole").join()
    takes, kills, done = time.time() - begun, 0, 0
    while kills < times:
        process = started("killed")
        time.sleep(rng.uniform(0, takes / times * 1.5))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:  # it was faster than we: break something and go on
            done += 1
            rng.choice(sorted((folder / "killed").glob("shard-*.done"))).unlink()
    started("killed").join()
    print(json.dumps({"kills": kills, "finished before the kill": done}))


def on_a_full_disk(folder, size):
    "A limit on the size of files stands for it: the write fails in the middle, in the system."
    from tokenscope.text.names import ScopeError

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        job(folder)
    except ScopeError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "kill":
        killed_at_random(folder, int(sys.argv[3]))
    elif what == "full":
        on_a_full_disk(folder, int(sys.argv[3]))
    else:
        print(json.dumps({"rows": job(folder).n_rows}))
