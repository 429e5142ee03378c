"""A real Kubernetes on this host, and the chart installed in it: ``python -m tests.k3s``."""
