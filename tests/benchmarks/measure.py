"""How the benchmarks measure: one thread, process CPU time, one warm-up, interleaved rounds in which every variant runs once (every second round
backwards), the median of the rounds' ratios. Numbers are printed, never asserted. TOKENSCOPE_ROUNDS says how many rounds: `make bench` takes 5, the tests 1 without a
warm-up: they only see that everything runs.
With TOKENSCOPE_BENCH set to a file, every number is also added to it, a line each."""
import ctypes
import gc
import json
import os
import statistics
import time
from importlib.metadata import PackageNotFoundError, version

ROUNDS = int(os.environ.get("TOKENSCOPE_ROUNDS", 1))
SMOKE = ROUNDS == 1  # the shortest input that still shows that everything runs
PEERS = {"TransformerLens": "transformer-lens", "nnsight": "nnsight", "pyvene": "pyvene", "Inseq": "inseq", "Captum": "captum", "faiss": "faiss-cpu", "transformers": "transformers"}


def ratios(plain, variants: dict, rounds: int = ROUNDS) -> dict:
    "Median ratio of each variant's CPU time to the plain one's, over interleaved rounds."
    every = {"plain": plain, **variants}
    seconds = {name: [] for name in every}
    if rounds > 1:
        for fn in every.values():
            fn()
    for round in range(rounds):
        for name in list(every)[::-1 if round % 2 else 1]:
            begun = time.process_time()
            every[name]()
            seconds[name].append(time.process_time() - begun)
    return {name: statistics.median(s / p for s, p in zip(seconds[name], seconds["plain"])) for name in variants}


def show(work: str, unit: str, found: dict, aims: "dict | None" = None, rounds: int = ROUNDS):
    """Print one table. `found` maps who (tokenscope, a peer, "by hand") to {what: number}; `aims` maps what to the most that tokenscope should take."""
    print(f"\n{work}, {unit}")
    for who, numbers in found.items():
        for what, number in numbers.items():
            aim = (aims or {}).get(what) if who == "tokenscope" else None
            print(f"  {who:16} {what:44} {number:8.2f}" + (f"   aim {aim:g}" if aim else ""))
            if file := os.environ.get("TOKENSCOPE_BENCH"):
                with open(file, "a") as f:
                    f.write(json.dumps(dict(work=work, unit=unit, who=who, version=_version(who), what=what, number=round(number, 3), aim=aim, rounds=rounds)) + "\n")


def _version(who):
    try:
        return version(PEERS[who]) if who in PEERS else None
    except PackageNotFoundError:
        return None


def ratio_table(work: str, plain, variants: dict, aims: "dict | None" = None, unit: str = "ratio to a plain forward", rounds: int = ROUNDS):
    "Measure and show `variants`: {who: {what: function}}."
    flat = ratios(plain, {(who, what): fn for who, jobs in variants.items() for what, fn in jobs.items()}, rounds)
    show(work, unit, {who: {what: flat[who, what] for what in jobs} for who, jobs in variants.items()}, aims, rounds)


def memory_table(work: str, variants: dict):
    "The peak memory of `variants`, in MiB above what was held before."
    show(work, "peak memory, MiB", {who: {what: peak_mib(fn) for what, fn in jobs.items()} for who, jobs in variants.items()})


def peak_mib(fn) -> float:
    "Memory that a call adds at its peak, in MiB; what was freed before is given back first. A fork would not do: a child of a process that ran torch may hang."
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # forget the peak so far
    before = _memory("VmRSS")
    fn()
    return (_memory("VmHWM") - before) / 1024


def _memory(field) -> int:
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field))
