"""Measure the latency of networks on this machine, and fill latency tables."""
