"""How the benchmarks measure: one thread, process CPU time, one warm-up, interleaved rounds in which every variant runs once, the median of the
rounds' ratios. Numbers are printed, never asserted. TOKENSCOPE_ROUNDS says how many rounds; `make bench` takes 7, the tests 3."""
import os
import resource
import statistics
import time

ROUNDS = int(os.environ.get("TOKENSCOPE_ROUNDS", 3))


def ratios(plain, variants: dict) -> dict:
    "Median ratio of each variant's CPU time to the plain one's, over interleaved rounds."
    every = {"plain": plain, **variants}
    seconds = {name: [] for name in every}
    for fn in every.values():
        fn()
    for _ in range(ROUNDS):
        for name, fn in every.items():
            begun = time.process_time()
            fn()
            seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(s / p for s, p in zip(seconds[name], seconds["plain"])) for name in variants}


def show(title, found):
    print(f"\n{title}")
    for name, ratio in found.items():
        print(f"  {name:42} {ratio:.2f}")


def peak_mib(fn) -> float:
    "Memory that a call adds at its peak, in a process of its own."
    def high_water(job):
        read, write = os.pipe()
        if not os.fork():
            try:
                job()
                os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as f:
            said = f.read()
        os.wait()
        return int(said) / 1024
    return high_water(fn) - high_water(lambda: None)
