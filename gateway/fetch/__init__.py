"""Fetches images from URLs that strangers chose."""
