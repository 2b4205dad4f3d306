"""One servable's queue. Pure but for `job`: events and times in, batches out."""
