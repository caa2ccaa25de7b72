"""Run the command line by `python -m pipeline`, which is the same command as the console script `sidpipe`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process without a traceback until `watch` answers it

from pipeline.stopping import Stopped, exit_code, leave, reason, requested, tell, watch


def start() -> None:
    """Answer signals from the first moment on, then load the command line and run it."""
    with watch():
        try:
            from pipeline.cli import main

            main()
        except Stopped:
            tell(f"stopped by {reason()}; nothing had begun")
            leave(exit_code())
        except SystemExit as end:
            if requested():
                leave(int(end.code or 0))
            raise


if __name__ == "__main__":
    start()
