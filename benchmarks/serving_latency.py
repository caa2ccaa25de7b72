"""Measure the time of one request to a served model: p50 and p99, with 1 and 8 clients at once.

    mlflow models serve -m models/published/current --env-manager local --port 8000
    python benchmarks/serving_latency.py http://127.0.0.1:8000 --generator models/generator

Each client posts one history after another and waits for the answer. Histories are random items of the catalogue, 1 to
20 of them; the first requests, in which the server warms up, do not count.
"""

import argparse
import json
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from pipeline.artifacts import read_parquet

WARM_UP = 20
LONGEST = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--generator", type=Path, default=Path("models/generator"))
    parser.add_argument("--requests", type=int, default=400, help="in all, for each number of clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    raw_ids = read_parquet(arguments.generator / "items.parquet")["raw_id"].astype(str).to_numpy()
    rng = np.random.default_rng(0)
    bodies = [
        json.dumps(
            {"dataframe_records": [{"history": rng.choice(raw_ids, rng.integers(1, LONGEST + 1)).tolist()}]}
        ).encode()
        for _ in range(arguments.requests)
    ]
    for body in bodies[:WARM_UP]:
        ask(arguments.address, body)
    for clients in arguments.clients:
        seconds = measure(arguments.address, bodies, clients)
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        print(f"{clients} clients: p50 {p50:.0f} ms, p99 {p99:.0f} ms, {len(seconds)} requests")


def measure(address: str, bodies: list[bytes], clients: int) -> list[float]:
    """Return the seconds of each request, where `clients` threads share the requests."""
    seconds: list[float] = []

    def work(mine: list[bytes]) -> None:
        seconds.extend([ask(address, body) for body in mine])

    threads = [threading.Thread(target=work, args=(bodies[client::clients],)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def ask(address: str, body: bytes) -> float:
    """Post one request, and return the seconds until its answer is read."""
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
