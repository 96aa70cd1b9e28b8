"""Preferences into weights."""
