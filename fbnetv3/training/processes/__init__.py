"""Processes of a training: process group, launcher, interrupts."""
