"""Doors into other systems; each an option that the rest of llmray does not know of.

A file each: `kuberay` renders a Serve file for Kubernetes.
"""
