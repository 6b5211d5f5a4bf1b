"""Distributed training processes: process group, launcher, and interrupts."""
