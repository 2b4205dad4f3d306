"""The load generator of benchmarks and tests: HTTP requests over keep-alive connections."""
