"""Compute on tensors along a packed axis. Nothing here knows items, networks or files."""
