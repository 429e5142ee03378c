"""Suites that nobody here wrote judge a running service over HTTP; each in an environment of its own."""
