"""Experiments that train many networks."""
