"""The real command line, real services, real load."""
