"""Synthetic faces for the demo and the tests."""
