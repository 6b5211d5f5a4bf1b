"""Simulation of searches on clusters of GPUs."""
