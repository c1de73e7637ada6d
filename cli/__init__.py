"""The command line: one file a group of commands; results on stdout, progress on stderr."""
