"""The command line: thin files, one for each kind of command."""
