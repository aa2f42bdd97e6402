"""bdr: a database-backed catalog of binary data for workflow engines."""
