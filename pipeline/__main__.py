"""Run the command line by `python -m pipeline`, which is the same command as the console script `sidpipe`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
