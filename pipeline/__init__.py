"""sidpipe turns raw interaction logs into a trained, evaluated, comparable generative recommender."""

import os

# Threads that wait for each other by spinning slow a busy machine down: with two threads and one more process on two
# cores, the default model trained at an eighth of one thread's speed, and at half of it when the threads sleep instead.
# torch reads this variable once, when it loads its thread pool.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
