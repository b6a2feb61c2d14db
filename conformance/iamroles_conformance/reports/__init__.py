"""What a run says: failures, documents, pages, tables."""
