"""Tensor operations on a packed axis. They know neither items nor networks nor files."""
