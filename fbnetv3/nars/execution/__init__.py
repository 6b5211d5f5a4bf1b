"""Executors that evaluate candidates in parallel."""
