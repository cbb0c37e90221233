"""Margin heads: embeddings to a loss, dense and sharded."""
