"""The command line: arguments in, results out. The only floor that prints."""
