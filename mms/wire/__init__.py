"""What the server process and its workers say to each other, and how it is written."""
