"""Processes of a run: launch, rendezvous, collectives, lost processes."""
