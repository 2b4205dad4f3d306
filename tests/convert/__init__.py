"""Networks that are converted, run on other engines, and compared with MXNet."""
