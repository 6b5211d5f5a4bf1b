"""The `fbnetv3` command: one module per subcommand, which the scripts in `tools/` run as well."""
