"""Helpers shared by all packages: files, downloads, YAML, checks, nested keys, logging, plotting."""
