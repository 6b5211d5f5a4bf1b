"""Architectures and training configs, installed as package data of `fbnetv3.configs`."""
