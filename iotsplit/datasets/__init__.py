"""Training records: built-in sets, files of users, and how they are dealt out to devices."""
