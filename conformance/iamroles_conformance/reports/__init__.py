"""The output of a run: failures, documents, pages, tables."""
