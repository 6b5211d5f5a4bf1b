"""Helpers that belong to no other room: files, downloads, YAML, checks, nested keys, logging, plotting."""
