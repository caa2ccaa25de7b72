"""sidpipe: from raw interaction logs to a trained, evaluated, comparable generative recommender."""

__version__ = "0.1.0"
