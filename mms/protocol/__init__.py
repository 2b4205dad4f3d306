"""PUBLIC: 1.x's messages between server and worker."""
