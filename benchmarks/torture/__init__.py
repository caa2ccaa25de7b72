"""Torture: signals, full disks, odd values, damaged files and hostile servers, with a verdict on each trial."""
