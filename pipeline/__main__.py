"""Run the command line by `python -m pipeline`, which is the same command as the console script `sidpipe`."""

from pipeline.stopping import leave, requested, watch


def start() -> None:
    """Answer signals from the first moment on, then load the command line and run it."""
    with watch():
        from pipeline.cli import main

        try:
            main()
        except SystemExit as end:
            if requested():
                leave(int(end.code or 0))
            raise


if __name__ == "__main__":
    start()
