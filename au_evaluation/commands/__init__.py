"""The subcommands of eval_au.py, a file each: `make_parser()` makes its options, `main(arguments)` does the work."""
