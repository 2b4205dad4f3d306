"""The messages between the server process and its workers, and their encoding."""
