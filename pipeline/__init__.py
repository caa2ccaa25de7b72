"""sidpipe: from raw interaction logs to a trained, evaluated, comparable generative recommender."""

import os

# Threads that wait for each other by spinning bring a busy machine to a crawl: with two of them and one more process on
# two cores, the default model trained at an eighth of one thread's speed, and at half of it when they sleep instead.
# Read once, when torch loads its thread pool.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
