"""Run the command line by `python -m pipeline`, which is the same command as the console script `sidpipe`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the process without a traceback until `watch` answers it

from pipeline.stopping import Stopped, exit_code, leave, reason, tell, watch


def start() -> None:
    """Answer signals from the first moment on, then load the command line and run it."""
    try:
        with watch():
            _run()
    except Stopped:  # the signal came in the moment in which `watch` took over
        tell(f"stopped by {reason()}; nothing had begun")
        leave(exit_code())


def _run() -> None:
    try:
        from pipeline.cli import main

        main()
    except Stopped:
        tell(f"stopped by {reason()}; nothing had begun")
        leave(exit_code())
    except MemoryError:
        tell("out of memory, too little even to say where")
        leave(1)
    except SystemExit as end:
        if end.code:  # what failed for want of memory would fail again in the interpreter's last tasks
            leave(int(end.code))
        raise


if __name__ == "__main__":
    start()
